"""VeRA: the two matrices are held once, and what is trained are vectors."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import SMOL, TINY, base, equal_trees

from peftjax.models.decoder import abstract_params
from peftjax.nn.shared import fill
from peftjax.nn.tree import flatten, get
from peftjax.peft.attach import attach, detach
from peftjax.peft.partition import size
from peftjax.peft.vera import vera

KEY = jax.random.key(0)


def test_the_matrices_are_as_wide_as_the_widest_kernel_and_held_once():
    plain = abstract_params(SMOL)
    params = jax.eval_shape(lambda params: attach(params, [vera(rank=64)], KEY), plain)
    store = {path: leaf.shape for path, leaf in flatten(params).items() if path.startswith("shared/")}
    assert store == {"shared/default/vera/a/value": (64, 1536), "shared/default/vera/b/value": (64, 1536)}
    vectors = 30 * (7 * 64 + 576 + 192 + 192 + 576 + 1536 + 1536 + 576)
    assert size(params)[0] - size(plain)[0] == 2 * 64 * 1536 + vectors


def test_the_delta_is_that_of_the_paper():
    params = attach(base(), [vera(rank=3)], KEY)
    node = fill(get(params, "blocks/attn/v/kernel"), params["shared"])
    node = jax.tree.map(lambda leaf: leaf + 0.5, node)
    rows, width = TINY.width, TINY.kv_heads * TINY.head_size
    for layer in range(2):
        b = np.diag(node.lambda_b[layer]) @ np.asarray(node.b)[:, :width].T
        whole = b @ np.diag(node.lambda_d[layer]) @ np.asarray(node.a)[:, :rows]
        np.testing.assert_allclose(node.delta()[layer], whole.T, rtol=1e-5, atol=1e-5)


def test_the_matrices_depend_on_the_seed_alone_and_the_vectors_start_as_stated():
    one, other = (attach(base(), [vera(rank=3, d_initial=0.25)], jax.random.key(seed)) for seed in (0, 1))
    equal_trees(one, other)
    reseeded = attach(base(), [vera(rank=3, seed=1)], KEY)
    assert (get(one, "shared/default/vera/a").value != get(reseeded, "shared/default/vera/a").value).all()
    node = get(one, "blocks/attn/q/kernel")
    assert (node.lambda_d == 0.25).all() and not node.lambda_b.any()
    a = get(one, "shared/default/vera/a").value
    assert 0.8 * (6 / 28) ** 0.5 < jnp.abs(a).max() <= (6 / 28) ** 0.5


def test_two_of_different_names_stand_side_by_side_and_each_leaves_alone():
    both = attach(base(), [vera(rank=3), vera(rank=2, name="tone")], KEY)
    assert get(both, "shared/tone/vera/a").value.shape[0] == 2
    equal_trees(detach(both, ["tone"]), attach(base(), [vera(rank=3)], KEY))
    equal_trees(detach(both), base())
