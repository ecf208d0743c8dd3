"""A LoRA grows without a change of what it computes, and what is new can be trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TIED, base, moved, shapes

from peftjax.nn.tree import flatten, get
from peftjax.peft.attach import adapters, attach
from peftjax.peft.blend import to_lora
from peftjax.peft.changes import changes
from peftjax.peft.factored import dense
from peftjax.peft.grow import grow
from peftjax.peft.lora import lora
from peftjax.peft.vera import vera

KEY = jax.random.key(0)
METHOD = lora(rank=2, alpha=3, targets=["q_proj", "embed_tokens"], rank_pattern={"blocks/1/attn/q": 3}, name="tone")


def tree(*others):
    return moved(attach(base(TIED), [METHOD, *others], KEY))


def test_it_computes_the_same_and_keeps_its_values_and_scale():
    params = tree(lora(rank=2, targets="q_proj", name="beside"))
    made = grow(params, "tone", 5, KEY)
    for key, changed in changes(params, "tone").items():
        before, after = changed.read().weight, changes(made.params, "tone")[key].read().weight
        np.testing.assert_allclose(dense(after), dense(before), atol=1e-15)
        assert len(after.a) == 5
    assert made.certificate.is_exact and adapters(made.params) == ["beside", "tone"]
    old, new = (get(tree_, "blocks/attn/q/kernel") for tree_ in (params, made.params))
    assert flatten(made.params)["blocks/attn/q/kernel/beside/a"] is flatten(params)["blocks/attn/q/kernel/beside/a"]
    new, old = new.base, old.base
    np.testing.assert_array_equal(new.scale, old.scale)
    np.testing.assert_array_equal(new.a[0, :2], old.a[0, :2])
    assert not new.b[0, 2:].any() and new.a[0, 2:].any(axis=-1).all() and not new.b[1, 3:].any() and new.a[1, 3:].any(axis=-1).all()


def test_new_rows_learn():
    node = get(grow(tree(), "tone", 5, KEY).params, "blocks/attn/q/kernel")
    one = jax.tree.map(lambda leaf: leaf[0], node)
    gradient = jax.grad(lambda b: jnp.sum(jnp.square(jax.numpy.einsum("ri,ro->io", one.a, b) - 1)))(one.b)
    assert np.asarray(gradient).any(axis=-1).all()


def test_the_methods_make_room_for_it_with_the_same_scales():
    made = grow(tree(), "tone", 4, KEY)
    again = attach(base(TIED), made.methods, KEY)
    assert shapes(again) == shapes(made.params)
    for path in ("blocks/attn/q/kernel", "embed/embedding"):
        np.testing.assert_allclose(get(again, path).scale, get(made.params, path).scale, rtol=1e-6)


def test_growing_and_cutting_again_is_the_same():
    made = to_lora(grow(tree(), "tone", 6, KEY).params, "tone")
    assert {key: error.rank for key, error in made.certificate.kernels.items()} == {
        "blocks/0/attn/q/kernel": 2, "blocks/1/attn/q/kernel": 3, "embed/embedding": 2
    }


def test_less_rank_and_other_methods_are_refused():
    with pytest.raises(ValueError, match=r"rank 2 is less than the 3 there are; to_lora\(params, 'tone', 2\) cuts it"):
        grow(tree(), "tone", 2, KEY)
    with pytest.raises(TypeError, match="'v' is VeRA here, and LoRA grows"):
        grow(tree(vera(rank=2, targets="q_proj", name="v")), "v", 4, KEY)
