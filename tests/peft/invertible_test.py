"""The coupling behind the embedding can be undone."""

import jax
import numpy as np
import pytest
from tiny import SMOL, TINY, base, logits, moved

from peftjax.models.decoder import abstract_params
from peftjax.nn.tree import flatten, get
from peftjax.peft.attach import attach
from peftjax.peft.invertible import FIELDS, Coupling, invertible
from peftjax.peft.partition import partition, size

KEY = jax.random.key(0)


def coupling(width, size=2, activation="relu"):
    halves = (width // 2, width - width // 2)
    wide = {"f_down": halves[1], "f_up": halves[0], "g_down": halves[0], "g_up": halves[1]}
    shapes = {field: ((size, wide[field]) if field in wide else (wide[field[:4]],) if "up" in field else (size,)) for field in FIELDS}
    keys = jax.random.split(KEY, len(FIELDS))
    return Coupling(
        **{field: jax.random.normal(key, shape) for key, (field, shape) in zip(keys, shapes.items(), strict=True)},
        activation=activation, name="tone",
    )  # fmt: skip


@pytest.mark.parametrize("width", [8, 7])
def test_it_is_its_formula_and_can_be_undone(width):
    entry, x = coupling(width, activation="tanh"), np.asarray(jax.random.normal(KEY, (2, 3, width)))
    one, two = np.split(x, [width // 2], axis=-1)
    f = {field: np.asarray(getattr(entry, field)) for field in FIELDS}
    one = one + np.tanh(two @ f["f_down"].T + f["f_down_bias"]) @ f["f_up"] + f["f_up_bias"]
    two = two + np.tanh(one @ f["g_down"].T + f["g_down_bias"]) @ f["g_up"] + f["g_up_bias"]
    np.testing.assert_allclose(entry(x), np.concatenate([one, two], -1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(entry.inverse(entry(x)), x, rtol=1e-4, atol=1e-5)


def test_it_hangs_behind_the_embedding_and_is_read():
    params = attach(base(), [invertible()], KEY)
    assert not get(params, "embed_out/default").f_up.any() and get(params, "embed_out/default").f_down.any()
    assert np.abs(logits(moved(params)) - logits(base())).max() > 1e-2


def test_adapterhubs_start_is_normal_and_off_the_base():
    entry = get(attach({"embed": {"embedding": np.zeros((3, 600), np.float32)}}, [invertible(init="bert")], KEY), "embed_out/default")
    for field in ("f_down", "f_up", "g_down", "g_up"):
        assert abs(np.std(getattr(entry, field)) - 0.02) < 1e-3
    assert entry.f_down.shape == (150, 300) and not np.array_equal(entry.f_down, entry.g_down)


def test_the_number_of_trainables_on_smollm2():
    params = jax.eval_shape(lambda p: attach(p, [invertible()], KEY), abstract_params(SMOL))
    assert size(partition(params)[0])[0] == 166_752


def test_what_cannot_be_is_refused():
    for options, message in [
        ({"activation": "gelu_new"}, "invertible activation 'gelu_new' is none of"),
        ({"init": "zero"}, "invertible init 'zero' is none of identity, bert"),
        ({"reduction_factor": 0}, "reduction_factor 0 is not positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            invertible(**options)
    with pytest.raises(ValueError, match="embed_out/default is taken"):
        attach(base(TINY), [invertible(), invertible()], KEY)


def test_its_leaves_lie_outside_the_stack():
    assert {path for path in flatten(partition(attach(base(), [invertible()], KEY))[0])} == {f"embed_out/default/{f}" for f in FIELDS}
