"""Settings of every test: on the CPU, and shapes that differ in rank are never broadcast in silence."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
