"""GraLoRA: every block of the update has a small LoRA of its own."""

import jax.numpy as jnp
import numpy as np

from peftjax.peft.gralora import GraLoRA


def test_a_block_of_inputs_and_one_of_outputs_have_a_lora_of_their_own():
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((3, 6, 4), (3, 6, 5)))  # three blocks of rank two each
    node = GraLoRA(jnp.zeros((12, 15)), jnp.asarray(a), jnp.asarray(b), None, None, jnp.float32(0.5), None, "default")
    for n in range(3):
        for j in range(3):
            wanted = 0.5 * a[n, 2 * j : 2 * j + 2].T @ b[j, 2 * n : 2 * n + 2]
            np.testing.assert_allclose(node.delta()[4 * n : 4 * n + 4, 5 * j : 5 * j + 5], wanted, rtol=1e-5, atol=1e-5)
    assert np.linalg.matrix_rank(np.asarray(node.delta())) == 12  # a LoRA of as many numbers has rank six
