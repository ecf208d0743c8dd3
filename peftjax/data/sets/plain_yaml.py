"""YAML whose every scalar stays the text it is: 1963, yes and 1.0 are answers, not values."""

from pathlib import Path
from typing import Any

import yaml

# libyaml's reader is ten times faster; both give the same.
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def read_yaml(path: Path) -> Any:
    """Mappings, lists and texts of a UTF-8 file."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
