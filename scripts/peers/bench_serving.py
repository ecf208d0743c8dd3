"""The peers' half of the protocol of `peftjax.train.bench_worker`: facts, then an answer to each line of JSON."""

import json
import os
import sys
import time
from pathlib import Path

import transformers


def serve(load) -> None:
    """`load() -> (facts, commands)`; what anything else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    transformers.utils.logging.disable_progress_bar()
    facts, commands = load()
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(commands[request.pop("do")](**request)), file=answers)


def peak() -> dict[str, int]:
    """Peak resident bytes of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {"bytes": next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))}


def seconds(run) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
