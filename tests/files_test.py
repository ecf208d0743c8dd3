"""A file is replaced whole, or stays as it was."""

import multiprocessing

import pytest

from peftjax.files import locked, replacing


def test_replaces_at_the_end_only(tmp_path):
    path = tmp_path / "below" / "a.txt"
    with replacing(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    with replacing(path) as partial:
        partial.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as partial:
        partial.write_text("half")
        raise KeyError("interrupted")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def _count_up(folder, times):
    for _ in range(times):
        with locked(folder / ".lock"):
            (folder / "n").write_text(str(int((folder / "n").read_text()) + 1))


def test_the_lock_keeps_processes_apart(tmp_path):
    (tmp_path / "n").write_text("0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count_up, args=(tmp_path, 200)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (tmp_path / "n").read_text() == "400"
