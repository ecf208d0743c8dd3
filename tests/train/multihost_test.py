"""One run on two processes of this machine: the losses of one process, checkpoints that change the count, and an end together."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import tiny_config

from peftjax.train.checkpoint import Checkpoints
from peftjax.train.logs import read_metrics
from peftjax.train.multihost import ending_together, require_same

ROOT = Path(__file__).parents[2]
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from tiny_run import tiny_config


def get_config():
    config = tiny_config(Path({folder!r}))
    config.train.steps, config.eval.every = 40, 20
    config.checkpoint.every, config.checkpoint.keep_newest = 5, 3
    return config
"""
STEPS = 40


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_config(folder)
    path = folder / "config.py"
    path.write_text(CONFIG.format(tests=str(ROOT / "tests"), folder=str(folder)))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def started():
    """Processes that were started; none outlives the tests."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def start(config, started):
    """The run as `count` processes in a folder."""

    def begin(workdir: Path, count: int) -> list[subprocess.Popen]:
        started.extend(begun := processes_of(config, workdir, count))
        return begun

    return begin


def processes_of(config: Path, workdir: Path, count: int) -> list[subprocess.Popen]:
    """Each with one device."""
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), f"--config={config}", f"--workdir={workdir}"]
    joined = [[] if count == 1 else ["--multihost", f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={number}"]
              for port in [free_port()] for number in range(count)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return [subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
            for flags in joined]


def ended(processes: list[subprocess.Popen], expected: int = 0) -> list[tuple[str, str]]:
    """(stdout, stderr) of each, when all have ended."""
    found = [process.communicate(timeout=300) for process in processes]
    assert all((process.returncode == 0) == (expected == 0) for process in processes), found
    return found


def kill_at(processes: list[subprocess.Popen], victim: int, workdir: Path, lines: int) -> None:
    """Kills one of them once so many lines are logged."""
    while len(read_metrics(workdir)) < lines:
        try:
            code = processes[0].wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"ended with {code} before it was killed: {processes[0].communicate()}")
    processes[victim].send_signal(signal.SIGKILL)


def losses(workdir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(workdir) if "loss" in line}


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ended(start(workdir, 1))
    return workdir


def equal_runs(ours: Path, theirs: Path) -> None:
    """Losses of all steps, evaluations and answers of two runs are the same but for the order of sums."""
    one, other = losses(ours), losses(theirs)
    assert list(one) == list(other) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-5)
    first, second = (json.loads((path / "result.json").read_text())["evaluations"] for path in (ours, theirs))
    assert [e["step"] for e in first] == [e["step"] for e in second]
    np.testing.assert_allclose([e["loss"] for e in first], [e["loss"] for e in second], rtol=1e-5)
    assert [e["metrics"] for e in first] == [e["metrics"] for e in second]


@pytest.mark.slow  # starts the script five times: a minute and a half
def test_a_process_that_dies_ends_the_other_and_one_process_goes_on_with_what_two_began(start, alone, tmp_path):
    run = tmp_path / "run"
    pair = start(run, 2)
    kill_at(pair, 1, run, 14)
    (said, error), _ = (process.communicate(timeout=120) for process in pair)
    assert pair[0].returncode not in (0, None), (said, error)
    assert "process 0 of 2 ends, and the others with it" in error or "Terminating process" in error, error
    begun = max(Checkpoints(run / "checkpoints", {}).all_steps())
    assert 5 <= begun < STEPS and not (run / "result.json").exists()
    ((said, _),) = ended(start(run, 1))
    assert f"resumed at step {begun}" in said
    equal_runs(run, alone)


def said(text):
    """Lines of this library; Gloo says itself who is connected."""
    return [line for line in text.splitlines() if line and not line.startswith("[Gloo]")]


@pytest.mark.slow  # starts the script four times: a minute
def test_two_processes_go_on_with_what_one_began_and_only_the_first_writes(start, alone, tmp_path):
    run = tmp_path / "run"
    single = start(run, 1)
    kill_at(single, 0, run, 14)
    single[0].communicate()
    begun = max(Checkpoints(run / "checkpoints", {}).all_steps())
    (first, _), (second, _) = ended(start(run, 2))
    assert f"resumed at step {begun}" in first and "report:" in first and said(second) == []
    equal_runs(run, alone)
    (again, _), (silent, _) = ended(start(run, 2))
    assert "is done" in again and said(silent) == []


@pytest.mark.slow  # starts the script once
def test_without_a_cluster_the_processes_must_be_named(config, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), f"--config={config}", f"--workdir={tmp_path}", "--multihost"]
    found = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"})
    assert found.returncode != 0 and "give --coordinator host:port, --processes and --process" in found.stderr


def test_of_one_process_nothing_is_asked():
    require_same({"base": "abc"})
    with pytest.raises(KeyError), ending_together():
        raise KeyError("as it is")
