"""A set's records built once and kept as JSONL: `<cache>/sets/<name>-<version>-<hash of the options>.jsonl`."""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

from peftjax.cache import cache_dir
from peftjax.data.records import Record, read_jsonl, write_jsonl


def cached(name: str, version: str, options: dict[str, Any], make: Callable[[], Iterable[Record]]) -> list[Record]:
    """The records of the set; `make()` is called when these options were never built. `version` names sources and builder."""
    key = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]
    path = cache_dir("sets") / f"{name}-{version}-{key}.jsonl"
    if not path.exists():
        write_jsonl(path, make())
    return read_jsonl(path)[0]
