"""JSON objects in files, with errors that say what lies there instead."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftjax.files import replacing


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: not there; says what is.
        ValueError: no JSON object.
    """
    if not file.is_file():
        found = sorted(p.name for p in file.parent.iterdir())[:10] if file.parent.is_dir() else []
        inside = [p.parent.name for p in sorted(file.parent.glob(f"*/{file.name}"))] if file.parent.is_dir() else []
        hint = f"; there is one in {', '.join(inside)}: name that folder" if inside else ""
        raise FileNotFoundError(f"{file.parent} has no {file.name} (found: {', '.join(found) or 'nothing'}){hint}")
    try:
        content = json.loads(file.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not an object")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes an object, whole or not at all."""
    with replacing(file) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
