"""The DoRA node is the weight that the formula gives, with the paper's gradients; its lengths are found without that weight; what it may
stand on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TIED, TINY, base, equal_trees, logits, moved

from peftjax.nn.kernels import Tied, attend, dense, dot, lookup
from peftjax.nn.quant import quantise
from peftjax.nn.thin import shrink
from peftjax.nn.tree import flatten, get
from peftjax.peft.attach import attach, detach
from peftjax.peft.compose import compose, decompose
from peftjax.peft.composition import Average, BatchSplit, Stack
from peftjax.peft.dora import DoRA, column_squares, on_weight, settle
from peftjax.peft.dropout import drop
from peftjax.peft.lora import LoRA, lora
from peftjax.peft.parts import full
from peftjax.peft.roles import roles
from peftjax.peft.route import route
from peftjax.peft.tokens import TokenRows, trainable_tokens

KEY = jax.random.key(0)
IN, OUT, RANK = 64, 40, 3
rng = np.random.default_rng(0)


def normal(*shape) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


W, A, B, X, M = normal(IN, OUT) / 8, normal(RANK, IN) / 8, normal(RANK, OUT), normal(2, 5, IN), normal(OUT)


def made(weight, a=A, b=B, scale=0.7, magnitude=M, rate=None, name="tone") -> DoRA:
    node = on_weight(weight, jnp.asarray(a), jnp.asarray(b), jnp.float32(scale), rate, name)
    return node if magnitude is None else dataclasses.replace(node, magnitude=magnitude)


def changed(weight, a=A, b=B, scale=0.7) -> np.ndarray:
    """W + s AᵀB in float64."""
    weight, a, b = (np.asarray(array, np.float64) for array in (weight, a, b))
    return weight + scale * a.T @ b


def formula(weight, **update) -> np.ndarray:
    whole = changed(weight, **update)
    return whole * np.asarray(M, np.float64) / np.linalg.norm(whole, axis=0)


BASES = {
    "dense": lambda: W,
    "affine4": lambda: quantise(W, "affine4"),
    "nf4": lambda: quantise(W, "nf4"),
    "int8": lambda: quantise(W, "int8"),
    "float8": lambda: quantise(W, "float8"),
    "tied": lambda: Tied(W.T),
    "affine4 embedding": lambda: quantise(W, "affine4", block=8, rows=True),
    "nf4 embedding": lambda: quantise(W, "nf4", block=8, rows=True),
    "tied affine4 embedding": lambda: Tied(quantise(W.T, "affine4", rows=True)),
}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
@pytest.mark.parametrize("kind", BASES)
def test_the_node_is_the_formula_however_it_is_read(kind, wrap):
    node = made(BASES[kind]())
    want = formula(dense(node.base))
    assert node.shape == W.shape and node.dtype == W.dtype
    np.testing.assert_allclose(node.merge(), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(wrap(dot)(X, node), X @ want, rtol=1e-4, atol=1e-5)
    if kind == "dense" or "embedding" in kind and "tied" not in kind:
        y, ids = dot(X, W), jnp.array([[3, 0, 1]])
        np.testing.assert_allclose(wrap(attend)(y, node), y @ want.T, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(wrap(lambda i, k: lookup(i, k, jnp.float32))(ids, node), want[ids], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BASES)
def test_it_starts_as_its_base_to_the_last_bit(kind):
    weight = BASES[kind]()
    node = made(weight, b=jnp.zeros_like(B), magnitude=None)
    np.testing.assert_array_equal(jax.jit(lambda n: n.lengths())(node), np.ones(OUT, np.float32))
    np.testing.assert_array_equal(jax.jit(dot)(X, node), jax.jit(dot)(X, weight))
    np.testing.assert_array_equal(node.merge(), dense(weight))
    np.testing.assert_allclose(node.magnitude, np.linalg.norm(dense(weight), axis=0), rtol=1e-6)


def test_a_thin_product_made_beside_others_is_taken():
    node = made(W)
    assert node.thin_input(training=True) is node.a and made(W, rate=jnp.float32(0.5)).thin_input(training=True) is None
    np.testing.assert_array_equal(dot(X, node), node.dot(X, thin=shrink(X, node.a)))
    np.testing.assert_allclose(node.dot(X, thin=0 * shrink(X, node.a)), X @ (W * jnp.broadcast_to(node.lengths(), W.shape)), atol=1e-5)


# ---- lengths -------------------------------------------------------------------------------------------------------------------------


def lengths(weight, a, b, scale) -> np.ndarray:
    """n as the node finds it."""
    return np.asarray(1 / made(weight, a, b, scale, magnitude=jnp.ones(weight.shape[1])).lengths())


@settings(deadline=None, max_examples=40)
@given(
    rank=st.integers(1, 6), rows=st.integers(7, 40), seed=st.integers(0, 99), scale=st.floats(-4, 4, width=32),
    weight=st.integers(-8, 6), update=st.integers(-8, 6),
)  # fmt: skip
def test_lengths_are_those_of_the_whole_weight_at_any_sizes(rank, rows, seed, scale, weight, update):
    draw = np.random.default_rng(seed).standard_normal
    w = (10.0**weight * draw((rows, 9))).astype(np.float32)
    a, b = (draw((rank, size)).astype(np.float32) for size in (rows, 9))
    b *= np.float32(10.0**update)
    want = np.linalg.norm(changed(w, a, b, scale), axis=0)
    away = np.linalg.norm(w - a.T @ np.linalg.lstsq(a.T, w, rcond=None)[0], axis=0)  # what no update can cancel
    keep = away > 0.2 * np.linalg.norm(w, axis=0)
    np.testing.assert_allclose(lengths(jnp.asarray(w), a, b, scale)[keep], want[keep], rtol=1e-5)


@pytest.mark.parametrize("left", [0.5, 0.2, -0.2, 0.1])
def test_lengths_of_columns_that_the_update_cancels_all_but_a_part_of(left):
    """The worst there is: every column lies among A's rows, and B takes all of it but a part away. What is left of a square of length 1 is
    rounded as 1 is."""
    b = normal(RANK, OUT)
    w = np.asarray(A, np.float64).T @ np.asarray(b, np.float64)
    got = lengths(jnp.asarray(w, jnp.float32), A, -(1 - left) * b, 1.0)
    want = np.linalg.norm(changed(jnp.asarray(w, jnp.float32), A, -(1 - left) * b, 1.0), axis=0)
    np.testing.assert_allclose(got, want, rtol=max(2e-5, 4 * np.finfo(np.float32).eps / left**2))


def test_a_column_that_is_cancelled_or_empty_stays_finite():
    b = normal(RANK, OUT)
    whole = jnp.asarray(A).T @ b
    gone = lengths(whole, A, -b, 1.0)
    assert np.all(np.isfinite(gone)) and np.all(gone <= 2e-3 * np.linalg.norm(whole, axis=0))
    empty = made(W.at[:, 3].set(0), b=jnp.zeros_like(B), magnitude=None)
    gradients = jax.grad(lambda n: jnp.sum(dot(X, n) ** 2), allow_int=True)(empty)
    for field in ("a", "b", "magnitude"):
        assert np.all(np.isfinite(getattr(gradients, field))), field
    assert empty.magnitude[3] == 0 and not dot(X, empty)[..., 3].any()
    assert not gradients.b[:, 3].any() and gradients.magnitude[3] == 0


def test_a_weight_of_fewer_bits_is_not_copied_and_lengths_are_no_worse():
    half = W.astype(jnp.bfloat16)
    np.testing.assert_allclose(lengths(half, A, B, 0.7), np.linalg.norm(changed(half), axis=0), rtol=1e-4)
    node = made(half)
    assert node.merge().dtype == jnp.bfloat16 and dot(X.astype(jnp.bfloat16), node).dtype == jnp.bfloat16
    np.testing.assert_allclose(dot(X.astype(jnp.bfloat16), node).astype(jnp.float32), X @ formula(half), rtol=0.05, atol=0.05)
    assert (IN, OUT) not in shapes_made(jax.grad(loss, (0, 1, 2, 3)), A, B, M, X.astype(jnp.bfloat16), half)


# ---- gradients -----------------------------------------------------------------------------------------------------------------------


def loss(a, b, magnitude, x, weight):
    node = DoRA(weight, a, b, magnitude, jnp.float32(0.7), None, SQUARES, "tone")
    return jnp.sum(jnp.sin(dot(x, node).astype(jnp.float32)))


def dense_loss(a, b, magnitude, x, weight):
    """The paper's: the whole changed weight, its norm a constant."""
    whole = weight + 0.7 * a.T @ b
    norm = jax.lax.stop_gradient(jnp.linalg.norm(whole, axis=0))
    return jnp.sum(jnp.sin(x @ (whole * jnp.broadcast_to(magnitude / norm, whole.shape))))


SQUARES = column_squares(W)


def inner_programs(value):
    value = getattr(value, "jaxpr", value)
    if hasattr(value, "eqns"):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from inner_programs(part)


def shapes_made(function, *arguments) -> set[tuple[int, ...]]:
    """Shapes of all values that the traced program makes."""

    def of(program):
        for equation in program.eqns:
            for value in equation.params.values():
                for inner in inner_programs(value):
                    yield from of(inner)
            yield from (tuple(variable.aval.shape) for variable in equation.outvars)

    return set(of(jax.make_jaxpr(function)(*arguments).jaxpr))


@pytest.mark.parametrize("argument", range(4), ids=["a", "b", "magnitude", "x"])
def test_gradients_are_those_of_the_whole_weight_with_its_length_held(argument):
    got, want = (jax.jit(jax.grad(f, argument))(A, B, M, X, W) for f in (loss, dense_loss))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_gradients_of_an_embedding_and_its_tied_head():
    ids = jnp.array([[3, 0, 1], [2, 2, 9]])

    def both(a, b, magnitude, read):
        node = DoRA(W, a, b, magnitude, jnp.float32(0.7), None, SQUARES, "tone")
        return read(node, lambda x: attend(x, node), lambda i: lookup(i, node, jnp.float32))

    def ours(a, b, magnitude):
        return both(a, b, magnitude, lambda _, head, rows: jnp.sum(jnp.sin(head(rows(ids)))))

    def theirs(a, b, magnitude):
        whole = W + 0.7 * a.T @ b
        whole = whole * jnp.broadcast_to(magnitude / jax.lax.stop_gradient(jnp.linalg.norm(whole, axis=0)), whole.shape)
        return jnp.sum(jnp.sin(whole[ids] @ whole.T))

    for got, want in zip(*(jax.jit(jax.grad(f, (0, 1, 2)))(A, B, M) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_nothing_of_the_weights_size_is_made_beside_it():
    """Neither in the traced program nor in the compiled one, forward and backward; the formula written out makes several."""
    wide, thin, x = normal(512, 768), normal(4, 512), normal(8, 512)
    arguments = (thin, normal(4, 768), normal(768), x, wide)
    sizes = {(512, 768), (768, 512)}

    def ours(a, b, magnitude, x, weight):
        node = DoRA(weight, a, b, magnitude, jnp.float32(0.7), None, jnp.ones(768), "tone")
        return jnp.sum(jnp.sin(dot(x, node)))

    def temporary(function):
        gradient = jax.grad(function, (0, 1, 2, 3))
        return sizes & shapes_made(gradient, *arguments), jax.jit(gradient).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    made_of, held = temporary(ours)
    assert not made_of and held < wide.nbytes / 8, held
    made_of, held = temporary(dense_loss)
    assert made_of and held >= wide.nbytes, held


# ---- dropout and settling ------------------------------------------------------------------------------------------------------------


def test_what_dropout_takes_away_still_passes_through_the_base():
    node, key = made(W, rate=jnp.float32(0.5)), jax.random.key(3)
    h = drop(X, jnp.float32(0.5), key, "tone")
    want = h @ formula(W) + (X - h) @ W
    np.testing.assert_allclose(jax.jit(dot)(X, node, key), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dot(X, node), X @ formula(W), rtol=1e-4, atol=1e-4)
    begun = made(W, b=jnp.zeros_like(B), magnitude=None, rate=jnp.float32(0.5))
    np.testing.assert_allclose(jax.jit(dot)(X, begun, key), X @ W, rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # a model compiled both ways: fourteen seconds
def test_settling_changes_no_value_and_takes_the_pass_over_the_weight_away():
    params = moved(attach(base(TIED), [lora(rank=2, dora=True, targets=["all-linear", "embed_tokens"]), lora(rank=1, name="task")], KEY))
    done = settle(params)
    np.testing.assert_array_equal(logits(done, TIED), logits(params, TIED))
    assert set(flatten(done)) - set(flatten(params)) == {
        path.replace("/squares", "/settled") for path in flatten(params) if path.endswith("/squares")
    }
    node = get(done, "blocks/attn/q/kernel").base
    assert isinstance(node, DoRA) and node.settled.shape == (2, 24)
    one = made(W)
    assert (RANK, OUT) in shapes_made(dot, X, one)
    assert (RANK, OUT) not in shapes_made(dot, X, dataclasses.replace(one, settled=one.lengths()))


@pytest.mark.parametrize("plan", [Average("tone", "task", "more"), BatchSplit(Stack("tone", "task"), "more")], ids=["mean", "rows"])
def test_in_a_composition_it_settles_as_alone(plan):
    methods = [lora(rank=2, dora=True, targets="q_proj", name="tone"), lora(rank=1, targets="q_proj", name="task"),
               lora(rank=1, dora=True, targets="k_proj", name="tone"), lora(rank=2, targets=["q_proj", "k_proj"], name="more")]
    params = moved(attach(base(), methods, KEY), 0.3)
    composed = route(compose(params, plan), [0, 1, 0]) if isinstance(plan, BatchSplit) else compose(params, plan)
    done, x = settle(composed), normal(3, 4, 16)
    for path in ("blocks/attn/q/kernel", "blocks/attn/k/kernel"):
        alone, part = (get(tree, path) for tree in (settle(decompose(params)), done))
        while not isinstance(alone, DoRA):
            alone = alone.base
        np.testing.assert_array_equal(part.parts["tone"].settled, alone.settled)
        one, other = (jax.tree.map(lambda leaf: leaf[0], get(tree, path)) for tree in (composed, done))
        np.testing.assert_allclose(dot(x, one), dot(x, other), rtol=1e-6, atol=1e-6)
        thin = (alone.a.shape[-2], one.shape[-1])  # A W, by way of which lengths are found
        assert thin in shapes_made(dot, x, one) and thin not in shapes_made(dot, x, other)
    equal_trees(settle(decompose(done)), settle(params))


# ---- attaching -----------------------------------------------------------------------------------------------------------------------


def test_attaching_puts_it_on_the_weight_under_loras_of_other_names():
    tone, task = lora(rank=2, dora=True, targets="q_proj", name="tone"), lora(rank=1, targets="q_proj", name="task")
    one, other = (moved(attach(base(), order, KEY)) for order in ([tone, task], [task, tone]))
    for tree in (one, other):
        outer = get(tree, "blocks/attn/q/kernel")
        assert isinstance(outer, LoRA) and isinstance(outer.base, DoRA) and outer.base.base.shape == (2, 16, 24)
    np.testing.assert_array_equal(logits(one), logits(other))
    assert isinstance(get(detach(one, ["task"]), "blocks/attn/q/kernel"), DoRA)


@pytest.mark.parametrize(
    ("first", "kind"),
    [(lora(rank=1, dora=True, targets="q_proj", name="first"), "DoRA"), (full(targets="q_proj", name="first"), "Trained")],
)
def test_two_on_one_weight_and_one_on_a_weight_that_is_trained_are_refused(first, kind):
    with pytest.raises(ValueError, match=f"DoRA cannot stand on blocks/attn/q/kernel, where {kind} 'first' stands: .*merge or detach"):
        attach(base(), [first, lora(rank=2, dora=True, targets="q_proj", name="second")], KEY)


def test_rows_of_tokens_go_on_top():
    params = attach(base(), [lora(rank=2, dora=True, targets="embed_tokens"), trainable_tokens(ids=(3, 5))], KEY)
    assert isinstance(get(params, "embed/embedding"), TokenRows) and isinstance(get(params, "embed/embedding").base, DoRA)


def test_magnitudes_do_not_decay_and_b_is_fast():
    of = get(roles(attach(base(), [lora(rank=2, dora=True, targets="q_proj")], KEY)), "blocks/attn/q/kernel")
    assert (of.a, of.b, of.magnitude) == ("matrix", "fast", "vector")


def test_scales_ranks_and_initial_values_are_those_of_lora():
    options = dict(rank=2, alpha=8, rslora=True, rank_pattern={"blocks/1/attn/q": 4}, init="gaussian", targets="q_proj")
    plain, node = (
        get(attach(base(), [lora(**options, dora=dora)], KEY), "blocks/attn/q/kernel") for dora in (False, True)
    )
    for field in ("a", "b", "scale"):
        np.testing.assert_array_equal(getattr(node, field), getattr(plain, field), err_msg=field)
    assert node.magnitude.shape == (2, 24) == node.squares.shape
    np.testing.assert_allclose(node.magnitude, np.linalg.norm(base()["blocks"]["attn"]["q"]["kernel"], axis=1), rtol=1e-6)


def test_merging_a_stack_is_merging_its_layers():
    node = get(moved(attach(base(), [lora(rank=2, alpha=3, dora=True)], KEY)), "blocks/mlp/down/kernel")
    whole = node.merge()
    for layer in range(TINY.layers):
        one = jax.tree.map(lambda leaf, i=layer: leaf[i], node)
        np.testing.assert_allclose(whole[layer], one.merge(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["affine4", "nf4"])
def test_a_quantised_stack_is_measured_one_layer_after_the_other(kind):
    stack = quantise(jnp.stack([W, 2 * W, -W]), kind)
    np.testing.assert_allclose(column_squares(stack), np.sum(np.square(dense(stack)), axis=1), rtol=1e-5)
    assert all(shape[:1] != (3,) or len(shape) < 3 for shape in shapes_made(column_squares, stack) if IN in shape and OUT in shape)


def test_a_bias_behind_b_is_refused():
    with pytest.raises(ValueError, match="a bias behind B has no part in DoRA"):
        lora(dora=True, lora_bias=True)
