"""Records by the name of a built-in set or the path of a JSONL file: `load_records("ha_intents", languages=("en",))`."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftjax.data.records import Record, read_jsonl
from peftjax.data.sets import general, ha_intents, i18n, icd_chapter, prose, python_source, qa, rhobank, safety, shell

DATASETS: dict[str, Callable[..., list[Record]]] = {
    "general": general.build,
    "ha_intents": ha_intents.build,
    "i18n": i18n.build,
    "icd_chapter": icd_chapter.build,
    "prose": prose.build,
    "python_source": python_source.build,
    "qa": qa.build,
    "rhobank": rhobank.build,
    "safety": safety.build,
    "shell": shell.build,
}


def load_records(name_or_path: str | Path, **options: Any) -> tuple[list[Record], dict[str, Any]]:
    """The records and a report of plain data: rows, kept, doubles, and skipped rows by reason.

    `options` are those of the set's `build`, for a file those of `read_jsonl`. Raises ValueError for an unknown name or option, naming
    the nearest, FileNotFoundError for a path where no file is, and what reading or building raises.
    """
    name = str(name_or_path)
    if name in DATASETS:
        _check_options(name, DATASETS[name], options)
        records = DATASETS[name](**options)
        return records, {"rows": len(records), "kept": len(records), "doubles": 0, "skipped": {}}
    if not (name.endswith((".jsonl", ".json")) or Path(name).exists()):
        nearest = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"no data set {name!r}{hint} Built-in: {', '.join(DATASETS)}. Anything else is the path of a .jsonl file.")
    if not Path(name).is_file():
        raise FileNotFoundError(f"no file {name!r} (looked for in {Path.cwd()})")
    _check_options(name, read_jsonl, options)
    records, report = read_jsonl(name, **options)
    if not records:
        raise ValueError(f"{name} holds no records: {report}")
    return records, dataclasses.asdict(report)


def _check_options(name: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
    known = [option for option in inspect.signature(function).parameters if option != "path"]
    for option in options:
        if option not in known:
            nearest = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"data {name!r} has no option {option!r}{hint} Its options: {', '.join(known)}.")
