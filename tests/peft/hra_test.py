"""HRA is a chain of reflections, in their order, or one reflection of orthogonal directions."""

import jax
import numpy as np
import pytest
from tiny import SMOL, base, logits, moved

from peftjax.models.decoder import abstract_params
from peftjax.nn.tree import get
from peftjax.peft.attach import attach
from peftjax.peft.hra import hra
from peftjax.peft.partition import partition, size

KEY = jax.random.key(0)


def node_of(**options):
    params = moved(attach(base(), [hra(targets="q_proj", **options)], KEY))
    return jax.tree.map(lambda leaf: leaf[1], get(params, "blocks/attn/q/kernel"))


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_the_chain_is_the_product_of_its_reflections(rank):
    node, x = node_of(rank=rank), np.asarray(jax.random.normal(KEY, (3, 16)))
    chain = np.eye(16)
    for u in np.asarray(node.u):
        chain = chain @ (np.eye(16) - 2 * np.outer(u, u) / (u @ u))
    np.testing.assert_allclose(node.dot(x), x @ chain.T @ np.asarray(node.base), rtol=1e-4, atol=1e-5)


def test_orthogonal_directions_are_one_reflection():
    node, x = node_of(rank=3, gram_schmidt=True), np.asarray(jax.random.normal(KEY, (3, 16)))
    q = np.linalg.qr(np.asarray(node.u).T)[0]
    np.testing.assert_allclose(node.dot(x), (x - 2 * x @ q @ q.T) @ np.asarray(node.base), rtol=1e-4, atol=1e-5)


def test_an_even_rank_starts_in_pairs_and_others_off_the_base():
    u = get(attach(base(), [hra(rank=4, targets="q_proj")], KEY), "blocks/attn/q/kernel").u
    np.testing.assert_array_equal(u[:, 0::2], u[:, 1::2])
    assert np.any(u[:, 0] != u[:, 2])
    for options in ({"rank": 3}, {"rank": 4, "gram_schmidt": True}):
        assert np.abs(logits(attach(base(), [hra(targets="q_proj", **options)], KEY)) - logits(base())).max() > 1e-2


def test_the_number_of_trainables_on_smollm2():
    params = jax.eval_shape(lambda p: attach(p, [hra(targets=["q_proj", "v_proj"])], KEY), abstract_params(SMOL))
    assert size(partition(params)[0])[0] == 276_480


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="hra rank 0 is not positive"):
        hra(rank=0)
    with pytest.raises(ValueError, match="hra: 17 orthogonal directions among the 16 inputs of blocks/attn/q/kernel"):
        attach(base(), [hra(rank=17, gram_schmidt=True, targets="q_proj")], KEY)
    for node in (node_of(rank=3), node_of(rank=4, gram_schmidt=True)):
        with pytest.raises(TypeError, match="cannot cancel"):
            node.off()
