"""Settings of every test: on the CPU, and shapes that differ in rank are never broadcast in silence.

Tiny programs take longer to compile than to run, so the backend's optimisation is off: it halves the time.
Tests of exact bits ask for it where they compile (`compiler_options`). Each test process has a compilation cache of its own, which goes
with it: entries are not written in one piece, and processes that begin together would read each other's.
"""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="peftjax-compiled-")  # read when jax is imported
atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
