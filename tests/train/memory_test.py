"""Peak memory counts what was held, also after it was let go, and not what the parent process held."""

import os
import subprocess
import sys

import numpy as np

from peftjax.train.memory import peak_memory_bytes


def test_the_peak_outlives_what_made_it():
    held = np.ones(40_000_000)
    size = held.nbytes
    del held
    assert peak_memory_bytes()["peak_rss_bytes"] > size


def test_a_child_does_not_inherit_the_peak():
    held = np.ones(150_000_000)
    code = "from peftjax.train.memory import _peak_rss; print(_peak_rss())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert int(found.stdout) < held.nbytes / 2 < peak_memory_bytes()["peak_rss_bytes"]
