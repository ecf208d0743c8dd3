"""Bases trained here from scratch, which lie in the user's cache: `load_base("tiny:t128")`.

    tiny:NAME  ->  <cache>/bases/NAME          a directory in Hugging Face layout, written by scripts/pretrain.py
"""

from pathlib import Path

from peftjax.cache import cache_dir
from peftjax.hints import did_you_mean

PREFIX = "tiny:"


def folder_of(name: str) -> Path:
    """Where the base of this name lies, or will lie."""
    if not name or Path(name).name != name:
        raise ValueError(f"{name!r} is no name of a tiny base: it is one word, as t128 in tiny:t128")
    return cache_dir("bases") / name


def find(uri: str) -> Path:
    """The directory of `tiny:NAME`.

    Raises:
        FileNotFoundError: it was not trained yet; says how it is, and which ones were.
    """
    name = uri.removeprefix(PREFIX)
    folder = folder_of(name)
    if not (folder / "config.json").is_file():
        there = sorted(path.parent.name for path in cache_dir("bases").glob("*/config.json"))
        raise FileNotFoundError(
            f"no base {uri} in {folder.parent} (there: {', '.join(there) or 'none'}{did_you_mean(name, there)}); train it once: "
            f"python scripts/pretrain.py --config configs/pretrain/{name}.py"
        )
    return folder
