"""Settings of every test: on the CPU, and shapes that differ in rank are never broadcast in silence.

Tiny programs take longer to compile than to run, so the backend's optimisation is off: it halves the time.
Tests of exact bits ask for it where they compile (`compiler_options`).
"""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
