"""Processes that are timed in turns: each loads, warms up and waits; the parent asks one at a time, the others sleep.

    parent                                          child
    Worker("ours", command)            starts       serve(load): load() -> (facts, commands)
    worker.ready()                     <------      {"peak_bytes": ..., ...}              facts, one line of JSON
    worker.ask("step", repeats=1)      ------>      {"do": "step", "repeats": 1}
                                       <------      {"seconds": 5.2}                      what commands["step"](repeats=1) returned

A process of its own makes a peak of memory its own; turns on one machine make a ratio that drift does not reach. The child reads its
stdin blockingly; that its thread pools sleep too is measured (`Turns.idle`). Children that do not have this library (scripts/peers) speak
the same lines.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def serve(load: Callable[[], tuple[dict[str, Any], Mapping[str, Callable]]]) -> None:
    """The child: loads, tells `facts`, then answers until its stdin ends. What anything else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    facts, commands = load()
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(commands[request.pop("do")](**request)), file=answers)


class Worker:
    """A child process, asked from here.

    Attributes:
        name: what it is called in errors.
        ready_s: seconds from its start until it told its facts; set by `ready`.
    """

    def __init__(self, name: str, command: Sequence[str]):
        self.name, self.ready_s = name, None
        self._started = time.perf_counter()
        self._process = subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def ready(self) -> dict[str, Any]:
        """Waits until it has loaded; its facts. Errors as in `ask`."""
        facts = self._read()
        self.ready_s = time.perf_counter() - self._started
        return facts

    def ask(self, do: str, **arguments: Any) -> Any:
        """What its command `do` answers.

        Raises:
            ChildProcessError: the process ended instead of answering.
        """
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def cpu_seconds(self) -> float | None:
        """Processor time of all its threads so far; None where there is no /proc."""
        stat = Path(f"/proc/{self._process.pid}/stat")
        if not stat.is_file():
            return None
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _read(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"{self.name} ended with exit code {self._process.wait()} instead of an answer; see its messages above")
        return json.loads(line)


@dataclasses.dataclass
class Turns:
    """Asks workers one at a time.

    Attributes:
        workers: all that are loaded.
        idle: the largest share of one core that a waiting worker took during a turn of another of half a second or more; None where that
            is not known. Above a few per cent the times are not those of a process alone.
    """

    workers: Sequence[Worker]
    idle: float | None = None

    def ask(self, worker: Worker, do: str, **arguments: Any) -> Any:
        """`worker.ask`, while the others are watched."""
        waiting = [other for other in self.workers if other is not worker]
        before, start = [other.cpu_seconds() for other in waiting], time.perf_counter()
        answer = worker.ask(do, **arguments)
        seconds = time.perf_counter() - start
        for other, earlier in zip(waiting, before, strict=True):
            if earlier is not None and seconds >= 0.5:  # processor time is counted in hundredths of a second
                self.idle = max(self.idle or 0.0, (other.cpu_seconds() - earlier) / seconds)
        return answer
