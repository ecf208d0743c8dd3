"""Processes on this machine end with the command that began them."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from peftjax.train.config import default_config
from peftjax.train.sweep.job import Job
from peftjax.train.sweep.local import local
from peftjax.train.workdir import WorkDir, at_work


def test_a_sweep_that_is_told_to_end_ends_what_it_started(tmp_path, monkeypatch):
    begun, before = [], signal.getsignal(signal.SIGTERM)

    def start(self):
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return begun[-1]

    monkeypatch.setattr(Job, "start", start)
    with pytest.raises(SystemExit) as ended:
        local([Job((tmp_path / "first",)), Job((tmp_path / "second",))])
    assert len(begun) == 1 and begun[0].returncode == -signal.SIGTERM
    assert ended.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_a_killed_sweep_left_at_work_is_waited_for(tmp_path, monkeypatch):
    """It would be told as failed by a second process, which may not work in its folder."""
    left, free = Job((tmp_path / "left",)), Job((tmp_path / "free",))
    begun = []
    for job in (left, free):
        job.folders[0].mkdir()
    claimed = WorkDir(left.folders[0], default_config())

    def start(self):
        begun.append((self.name, at_work(left.folders[0])))
        if self is free:
            threading.Timer(0.5, claimed.close).start()
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(Job, "start", start)
    local([left, free], processes=2)
    assert begun == [("free", True), ("left", False)]


def test_no_processes_are_no_launcher():
    with pytest.raises(ValueError, match="processes is 0"):
        local([], processes=0)
