"""A config from the JSON that its run stored: `python scripts/train.py --config configs/stored.py:runs/x/config.json` is the run again."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.train.config import OPEN, default_config
from peftjax.train.points import with_point


def stored_config(path: str | Path) -> ConfigDict:
    """The config in a `config.json`, with the types of the fields: `plain(stored_config(path))` is what the file holds.

    Raises:
        ValueError: a field that no config has, with the nearest one.
        FileNotFoundError: no such file.
    """
    return with_point(default_config(), _fields(json.loads(Path(path).read_text()), ""))


def _fields(data: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Dotted fields, but for mappings that may hold any name, and methods: those are whole."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict) and name not in OPEN:
            found |= _fields(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if name in ("peft", "adapters") else _tuples(value)
    return found


def _tuples(value: Any) -> Any:
    """Lists as tuples, which is what a config file and a command line have."""
    if isinstance(value, dict):
        return {name: _tuples(child) for name, child in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
