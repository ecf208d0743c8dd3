"""The folder of a run: the same command starts the run in it, resumes it, or finds it done.

    config.json        what was asked; another config is refused
    checkpoints/       state
    evaluations/       one JSON file an evaluation, with its predictions: <step>.json, of several splits <step>-<split>.json
    metrics.jsonl      scalars by step
    result.json, report.md, *.png      at the end
    failed.json, stopped.json          where it failed, or lost a comparison in a population: see `peftjax.train.ending`
"""

import fcntl
import json
import re
from pathlib import Path
from typing import Any

from peftjax.files import replacing
from peftjax.train.config import config_hash, differences, flat_config, flatten_data, plain

# Fields that may change between two commands of one run: they alter what is kept or shown, not what is computed.
FREE = ("checkpoint.", "log.")
MARKS = ("failed", "stopped")


def default_workdir(name: str, config: Any) -> Path:
    """`runs/<config's file name>[-<variant>]-<hash of all fields>`."""
    file, _, variant = str(name).partition(":")
    variant = re.sub(r"[^\w.=+-]+", "_", variant)  # it may be a path
    return Path("runs") / "-".join(part for part in (Path(file).stem, variant, config_hash(config)) if part)


def at_work(path: str | Path) -> bool:
    """Whether a process is at work in a folder."""
    lock = Path(path) / ".lock"
    if not lock.exists():
        return False
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def require_config(path: Path, config: Any) -> None:
    """Refuses a folder that holds a run of another config; one without a config is anybody's.

    Raises:
        ValueError: the differences.
    """
    stored = path / "config.json"
    if not stored.exists():
        return
    theirs = flatten_data(json.loads(stored.read_text()))
    changed = [line for line in differences(flat_config(config), theirs) if not line.startswith(FREE)]
    if changed:
        raise ValueError(f"{path} holds a run of another config (asked | there): {'; '.join(changed)}. Name another --workdir")


class WorkDir:
    """Claims a folder for one run at a time, and for one config. Of a run on several hosts, the `main` process claims it for all.

    Raises:
        ValueError: the folder holds a run of another config, with the differences.
        RuntimeError: another process is at work in it.
    """

    def __init__(self, path: str | Path, config: Any, main: bool = True):
        self.path = Path(path)
        self.main, self._lock = main, None
        if not main:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"another process is at work in {self.path}; wait for it, or name another --workdir") from error
        self._claim(config)

    def _claim(self, config: Any) -> None:
        require_config(self.path, config)
        with replacing(self.path / "config.json") as partial:
            partial.write_text(json.dumps(plain(config), indent=1, sort_keys=True))

    @property
    def done(self) -> bool:
        """Whether the run's result is there."""
        return (self.path / "result.json").exists()

    def mark(self, status: str, found: dict) -> None:
        """Writes down how a run that is not done ended: `failed.json` or `stopped.json`."""
        with replacing(self.path / f"{status}.json") as partial:
            partial.write_text(json.dumps(found, indent=1))

    def unmark(self) -> None:
        """Takes such marks away: the run goes on."""
        for status in MARKS:
            (self.path / f"{status}.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Lets another process in."""
        if self._lock is not None:
            self._lock.close()

    def write_evaluation(self, evaluation: dict, others: bool = False) -> None:
        """Stores one evaluation whole, as `<step>.json`, or as `<step>-<split>.json` where its step has `others`."""
        name = f"{evaluation['step']:08d}" + (f"-{evaluation['split']}" if others else "")
        with replacing(self.path / "evaluations" / f"{name}.json") as partial:
            partial.write_text(json.dumps(evaluation))

    def evaluations(self, until: int | None = None) -> list[dict]:
        """Stored evaluations in the order of their steps, up to step `until`."""
        files = sorted((self.path / "evaluations").glob("[0-9]*.json"), key=lambda file: file.stem)
        return [json.loads(file.read_text()) for file in files if until is None or int(file.stem.split("-")[0]) <= until]

