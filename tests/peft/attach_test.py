"""Adapters come, go and are chosen by name; what remains computes bit for bit what it did."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TIED, TINY, base, equal_trees, logits, moved

from peftjax.nn.tree import flatten
from peftjax.peft.attach import activate, adapters, attach, cut_points, detach
from peftjax.peft.bottleneck import houlsby, pfeiffer
from peftjax.peft.lora import lora
from peftjax.peft.parts import bitfit, full, head_only, norm_only
from peftjax.peft.tokens import trainable_tokens

KEY = jax.random.key(0)
MANY = (
    lora(rank=2, name="tone"), lora(rank=3, targets=["q_proj", "lm_head"], name="task"), houlsby(size=3, name="net"),
    pfeiffer(size=2, name="tone"), bitfit(add=True, name="bias"), norm_only(name="norms"),
    lora(rank=2, targets="embed_tokens", name="words"),
)  # fmt: skip
NAMES = ["bias", "net", "norms", "task", "tone", "words"]


def many():
    return moved(attach(base(TIED), MANY, KEY))


def test_adapters_are_known_by_name():
    assert adapters(base()) == [] and adapters(many()) == NAMES


def test_switched_off_they_give_the_base_bit_for_bit():
    for off in (detach(many()), activate(many(), []), detach(many(), NAMES)):
        equal_trees(off, base(TIED))
        assert jax.tree.structure(off) == jax.tree.structure(base(TIED))
        np.testing.assert_array_equal(logits(off, TIED), logits(base(TIED), TIED))


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (3, 0, 5, 1, 4, 2)])
def test_one_by_one_in_any_order_too(order):
    params = many()
    for index in order:
        params = detach(params, [NAMES[index]])
        assert NAMES[index] not in adapters(params)
    equal_trees(params, base(TIED))


@pytest.mark.parametrize(
    "names", [c for r in (1, 2) for c in itertools.combinations(["net", "task", "tone", "words"], r)]
)
def test_what_is_active_is_what_was_attached_under_its_name(names):
    alone = moved(attach(base(TIED), [method for method in MANY if method.name in names], KEY))
    equal_trees(activate(many(), names), alone)


APART = (
    lora(rank=2, targets="embed_tokens", ensure_weight_tying=False, name="in"),
    lora(rank=2, targets="lm_head", name="out"),
    trainable_tokens(ids=(3, 7), targets="lm_head", name="rows"),
)  # fmt: skip


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_tied_head_that_was_kept_apart_is_tied_again_when_nothing_needs_it(order):
    """After each step, what is left computes what it does alone."""
    params, left = moved(attach(base(TIED), APART, KEY)), {method.name for method in APART}
    for index in order:
        left -= {APART[index].name}
        params = detach(params, [APART[index].name])
        equal_trees(params, moved(attach(base(TIED), [m for m in APART if m.name in left], KEY)) if left else base(TIED))
    assert jax.tree.structure(params) == jax.tree.structure(base(TIED)) and "head" not in params


def test_a_head_follows_those_adapters_of_the_embedding_that_it_is_tied_to():
    """Whatever came and went meanwhile."""
    follows = lora(rank=2, targets="embed_tokens", name="both")
    alone = moved(attach(base(TIED), [follows], KEY))
    for order in ([follows, *APART], [*APART, follows]):
        params = detach(moved(attach(base(TIED), order, KEY)), ["in", "out", "rows"])
        equal_trees(params, alone)
        assert jax.tree.structure(params) == jax.tree.structure(alone)


def test_a_saved_embedding_apart_from_its_head_leaves_no_trace():
    params = moved(attach(base(TIED), [full(targets="embed_tokens", ensure_weight_tying=False)], KEY))
    assert "head" in params
    equal_trees(detach(params), base(TIED))


def test_initial_values_do_not_depend_on_the_order():
    want = flatten(attach(base(TIED), MANY, KEY))
    for order in (MANY[::-1], MANY[3:] + MANY[:3]):
        got = flatten(attach(base(TIED), order, KEY))
        assert got.keys() == want.keys()
        for path in want:
            np.testing.assert_array_equal(got[path], want[path], err_msg=path)


def test_initial_values_depend_on_key_and_name():
    def first(name, seed):
        return attach(base(), [lora(rank=2, name=name)], jax.random.key(seed))["blocks"]["attn"]["q"]["kernel"].a

    values = [np.asarray(first(name, seed)) for name in ("tone", "task") for seed in (0, 1)]
    for one, other in itertools.combinations(values, 2):
        assert not np.isin(one, other).any()


def test_the_input_tree_is_not_touched():
    params = many()
    before = dict(flatten(params))
    detach(params, ["tone"])
    activate(params, ["task"])
    after = flatten(params)
    assert after.keys() == before.keys() and all(after[path] is before[path] for path in before)


def test_two_adapters_of_one_name_on_one_kernel_are_refused():
    with pytest.raises(ValueError, match="two leaves have one path: blocks/attn/q/kernel/default/a.*different names"):
        attach(base(), [lora(rank=2), lora(rank=4, targets="q_proj")], KEY)


@pytest.mark.parametrize("function", [detach, activate])
def test_unknown_names_are_refused_with_the_known_ones(function):
    with pytest.raises(
        ValueError, match="no adapter is called 'tune'; the tree holds bias, net, norms, task, tone, words"
    ):
        function(many(), ["tone", "tune"])
    with pytest.raises(ValueError, match="no adapter is called 'tone'; the tree holds none"):
        function(base(), ["tone"])


def test_cut_points_separate_what_the_methods_want():
    assert cut_points([lora(), norm_only()], 30) == ()
    assert cut_points([lora(layers=range(20, 30))], 30) == (20, 10)
    assert cut_points([lora(layers=range(30))], 30) == ()
    assert cut_points([lora(layers=[1]), pfeiffer(layers=[3, 4])], 6) == (1, 1, 1, 2, 1)
    assert cut_points([lora(layers=[0]), lora(layers=[0], name="b"), head_only()], 2) == (1, 1)


@pytest.mark.parametrize("methods", [[lora(rank=2, layers=[1])], [pfeiffer(size=3, layers=[0]), norm_only()]])
def test_a_base_cut_there_takes_them(methods):
    segments = cut_points(methods, TINY.layers)
    params = attach(base(TINY, segments), methods, KEY)
    assert logits(params, segments=segments).shape == (3, 5, 40)
    assert all(isinstance(leaf, jnp.ndarray) for leaf in flatten(params).values())


@pytest.mark.parametrize("name", ["", "a/b", "über mich", ".hidden"])
def test_a_name_that_would_break_a_path_is_refused(name):
    with pytest.raises(ValueError, match="an adapter cannot be called"):
        attach(base(), [lora(rank=2, name=name)], jax.random.key(0))
