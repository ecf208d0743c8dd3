"""A job: runs that one process trains, one by `train.py`, several together in one program. It is a command line that anybody can type.

    python scripts/train.py --config=configs/stored.py:FOLDER/config.json --workdir=FOLDER
    python -m peftjax.train.sweep.together FOLDER FOLDER ...
"""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftjax.train.ending import clear_failure, read_outcome, write_failure
from peftjax.train.sweep.folder import Run

ROOT = Path(__file__).parents[3]
LOG = "train.log"
TAIL = 2000  # characters of a log that an error quotes


@dataclasses.dataclass(frozen=True)
class Job:
    """Work directories with their stored configs, to be trained in one process. It can be called, here or on another machine that sees the
    folders: trains them, and returns the status of the process.

    Attributes:
        folders: of the runs.
        python: the interpreter.
        root: of the repository.
    """

    folders: tuple[Path, ...]
    python: str = sys.executable
    root: Path = ROOT

    @property
    def command(self) -> list[str]:
        """Its command line."""
        if len(self.folders) > 1:
            return [self.python, "-m", "peftjax.train.sweep.together", *map(str, self.folders)]
        (folder,) = self.folders
        return [self.python, f"{self.root}/scripts/train.py", f"--config={self.root}/configs/stored.py:{folder}/config.json",
                f"--workdir={folder}"]

    @property
    def log(self) -> Path:
        """Where its process prints to: into the folder of its first run."""
        return self.folders[0] / LOG

    @property
    def name(self) -> str:
        """That of its first run."""
        return self.folders[0].name

    def start(self, *more: str) -> subprocess.Popen:
        """Begins its process; `more` are further words of its command line."""
        for folder in self.folders:
            clear_failure(folder)
        with open(self.log, "ab") as log:
            return subprocess.Popen([*self.command, *more], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.root)

    def ended(self, status: int) -> None:
        """Notes in the folders without an end that the process ended: one that was killed could not say so itself."""
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status} and without a result"
        said = self.log.read_text(errors="replace")[-TAIL:].strip() if self.log.exists() else "nothing"
        for folder in self.folders:
            if read_outcome(folder).status == "unfinished":
                write_failure(folder, f"its process {how}; the end of {self.log}: {said}")

    def __call__(self) -> int:
        several = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1  # Slurm calls the job once on each host: they join to one run
        process = self.start(*["--multihost"] * several)
        try:
            status = process.wait()
        finally:
            process.terminate()
        self.ended(status)
        return status

    def checkpoint(self) -> Any:
        """What submitit asks when Slurm takes the machine away: the same again, which goes on from the last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def alone(runs: Sequence[Run]) -> list[Job]:
    """A job for each run."""
    return [Job((run.folder.absolute(),)) for run in runs]
