"""`tiny:NAME` is a directory in the cache, or an error with the command that makes it."""

import jax
import pytest
import tiny_checkpoint

from peftjax.interop import tiny
from peftjax.interop.base import load_base


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))


def test_a_base_is_found_by_its_name():
    params = tiny_checkpoint.write(tiny.folder_of("t9"))
    base = load_base("tiny:t9")
    assert base.uri == "tiny:t9" and jax.tree.structure(base.params) == jax.tree.structure(params)


def test_one_that_is_not_there_says_how_it_is_made():
    tiny_checkpoint.write(tiny.folder_of("t9"))
    command = "python scripts/pretrain.py --config configs/pretrain/t99.py"
    with pytest.raises(FileNotFoundError, match=rf"there: t9 .did you mean 't9'\?.*{command}"):
        load_base("tiny:t99")


@pytest.mark.parametrize("name", ["", "../t9", "a/b"])
def test_a_name_is_one_word(name):
    with pytest.raises(ValueError, match="no name of a tiny base"):
        load_base(f"tiny:{name}")
