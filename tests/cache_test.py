"""The cache folder is where the environment says, and it exists."""

from pathlib import Path

from peftjax.cache import cache_dir


def test_the_override_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir("a", "b") == tmp_path / "mine" / "a" / "b"
    assert cache_dir("a", "b").is_dir()
    assert not (tmp_path / "xdg").exists()


def test_then_the_desktop_standard_then_the_home(monkeypatch, tmp_path):
    monkeypatch.delenv("PEFTJAX_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "peftjax"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_dir("a") == tmp_path / ".cache" / "peftjax" / "a"


def test_what_lies_there_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))
    (cache_dir("a") / "file").write_text("kept")
    assert (cache_dir("a") / "file").read_text() == "kept"
    assert isinstance(cache_dir(), Path)
