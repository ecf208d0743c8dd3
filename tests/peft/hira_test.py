"""HiRA: the weight times a low-rank product, of which the rank is no bound."""

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.peft.attach import attach
from peftjax.peft.hira import HiRA, hira


def test_the_update_is_elementwise_and_of_full_rank():
    random = np.random.default_rng(0)
    weight, a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((12, 10), (2, 12), (2, 10)))
    node = HiRA(*map(jnp.asarray, (weight, a, b)), None, "default")
    np.testing.assert_allclose(node.delta(), weight * (a.T @ b), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(node.merge(), weight * (1 + a.T @ b), rtol=1e-5, atol=1e-6)
    assert np.linalg.matrix_rank(np.asarray(node.delta())) == 10


def test_inits_are_as_documented():
    wide = {"head": {"kernel": jnp.ones((400, 3))}}
    kaiming, gaussian = (
        attach(wide, [hira(rank=4, init=init, targets="head")], jax.random.key(0))["head"]["kernel"] for init in ("kaiming", "gaussian")
    )
    assert not kaiming.b.any() and not gaussian.b.any()
    assert np.abs(kaiming.a).max() <= 400**-0.5 and abs(np.std(kaiming.a) - 400**-0.5 / 3**0.5) < 2e-3
    assert abs(np.std(gaussian.a) - 0.25) < 0.02
