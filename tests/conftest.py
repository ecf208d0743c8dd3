"""Settings of every test: on the CPU, and shapes that differ in rank are never broadcast in silence.

Tiny programs take longer to compile than to run, so the backend's optimisation is off: it halves the time.
Tests of exact bits ask for it where they compile (`compiler_options`). Each test process has a compilation cache of its own, which goes
with it: entries are not written in one piece, and processes that begin together would read each other's. Each compiled program holds
memory maps; Linux allows 65,530 a process, and XLA dies of a segmentation fault at the limit, so programs are let go of before.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="peftjax-compiled-")  # read when jax is imported
atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go_of():
    """Forgets what earlier modules compiled once the process holds many memory maps (some ten a program)."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 12_000:
        jax.clear_caches()
