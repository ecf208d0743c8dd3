"""Bottleneck adapters compute the formula of their preset, start on the base where promised, refuse what cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMOL, TINY, base, logits, moved

from peftjax.models.decoder import abstract_params
from peftjax.nn.sites import Tokens
from peftjax.nn.tree import flatten, get
from peftjax.peft.attach import attach
from peftjax.peft.bottleneck import adapter_plus, bottleneck, houlsby, mean_within, parallel, pfeiffer, scaled_parallel
from peftjax.peft.lora import lora

KEY = jax.random.key(0)
U, R, N = np.asarray(jax.random.normal(jax.random.key(1), (3, 2, 3, 16)))


def entry_of(method, layer=None):
    """The entry at mlp_out, all leaves moved; of one layer, as in the scanned body."""
    entry = get(moved(attach(base(), [method], KEY)), "blocks/mlp_out/default")
    return entry if layer is None else jax.tree.map(lambda x: x[layer], entry)


def norm(x, scale, bias):
    x = np.asarray(x)
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * np.asarray(scale) + np.asarray(bias)


@pytest.mark.parametrize(
    ("method", "reads", "act", "scale"),
    [
        (houlsby(size=3), U, jax.nn.silu, 1),
        (pfeiffer(size=3), R + U, jax.nn.relu, 1),
        (parallel(size=3), R, jax.nn.relu, 4),
        (scaled_parallel(size=3), R, jax.nn.relu, None),
        (bottleneck(size=3, reads="normed", activation="gelu"), N, lambda x: jax.nn.gelu(x, approximate=False), 1),
        (bottleneck(size=3, scale="channel", init="bert"), R + U, jax.nn.relu, None),
    ],
    ids=["houlsby", "pfeiffer", "parallel", "scaled_parallel", "normed", "channel"],
)
def test_the_presets_are_their_formulas(method, reads, act, scale):
    entry = entry_of(method, 1)
    inner = act(reads @ np.asarray(entry.down).T + np.asarray(entry.down_bias))
    want = np.asarray(inner) @ np.asarray(entry.up) + np.asarray(entry.up_bias)
    if scale is None:
        assert "scale" in entry.trainable and np.ptp(np.append(entry.scale, 1.0)) > 1e-3
    else:
        assert "scale" not in entry.trainable and entry.scale == scale
    np.testing.assert_allclose(entry(U, residual=R, normed=N), U + want * np.asarray(entry.scale), rtol=1e-4, atol=1e-5)


def test_norms_stand_before_and_after():
    entry = entry_of(bottleneck(size=3, norm="both", reads="output", activation="linear"), 0)
    inner = norm(U, entry.norm_before, entry.norm_before_bias) @ np.asarray(entry.down).T + np.asarray(entry.down_bias)
    want = norm(inner @ np.asarray(entry.up) + np.asarray(entry.up_bias), entry.norm_after, entry.norm_after_bias)
    np.testing.assert_allclose(entry(U), U + want, rtol=1e-3, atol=1e-4)
    before = entry_of(bottleneck(size=3, norm="before"))
    assert before.norm_after is None and before.norm_before.shape == (2, 16)


def test_a_preset_is_what_its_options_override():
    assert houlsby(size=5, activation="relu").activation == "relu" and houlsby(size=5).sites == ("attn_out", "mlp_out")
    assert scaled_parallel() == dataclasses.replace(parallel(), scale="learned")
    assert pfeiffer() == bottleneck()


def test_the_size_is_given_or_the_width_reduced():
    assert entry_of(bottleneck(size=5)).down.shape == (2, 5, 16)
    assert entry_of(bottleneck(reduction_factor=4)).up.shape == (2, 4, 16)
    assert entry_of(bottleneck(reduction_factor=100)).down.shape == (2, 1, 16)
    abstract = jax.eval_shape(lambda p: attach(p, [pfeiffer()], KEY), abstract_params(SMOL))
    assert get(abstract, "blocks/mlp_out/default").down.shape == (30, 36, 576)


def test_inits_are_as_documented():
    wide = {"blocks": {"mlp_norm": {"scale": jnp.ones((2, 900))}}}
    made = {
        init: get(attach(wide, [bottleneck(size=30, init=init)], KEY), "blocks/mlp_out/default")
        for init in ("identity", "bert", "houlsby")
    }
    assert not made["identity"].up.any() and np.abs(made["identity"].down).max() <= 1 / 30
    assert abs(np.std(made["identity"].down) - 1 / 30 / 3**0.5) < 1e-3
    assert abs(np.std(made["bert"].up) - 0.02) < 1e-3 and abs(np.std(made["bert"].down) - 0.02) < 1e-3
    assert np.abs(made["houlsby"].up).max() <= 0.02 and np.std(made["houlsby"].up) > 0.007
    assert not np.array_equal(made["bert"].up, made["bert"].down)
    for entry in made.values():
        assert not entry.down_bias.any() and not entry.up_bias.any()


def test_near_the_base_is_not_on_it():
    for init in ("bert", "houlsby"):
        away = np.abs(logits(attach(base(), [pfeiffer(size=3, init=init)], KEY)) - logits(base())).max()
        assert 0 < away < 0.1


@pytest.mark.parametrize("site", ["embed_out", "attn_in", "mlp_in", "block_out", "final_out"])
def test_every_site_is_read(site):
    params = moved(attach(base(), [bottleneck(size=3, sites=(site,), reads="output")], KEY))
    assert np.abs(logits(params) - logits(base())).max() > 1e-3


def test_no_leaf_is_weakly_typed():
    methods = [houlsby(size=3, dropout=0.1, norm="both"), scaled_parallel(size=3, name="p"), parallel(size=3, name="q")]
    for path, leaf in flatten(attach(base(), methods, KEY)).items():
        assert leaf.dtype == jnp.float32 and not leaf.weak_type, path


def test_a_narrow_value_stays_narrow():
    assert entry_of(houlsby(size=3, norm="both"), 0)(U.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reads": "input"}, "bottleneck reads 'input' is none of output, sum, residual, normed"),
        ({"activation": "gelu_new"}, "bottleneck activation 'gelu_new' is none of silu"),
        ({"norm": True}, "bottleneck norm True is none of none"),
        ({"init": "zero"}, "bottleneck init 'zero' is none of identity"),
        ({"scale": "learnt"}, "bottleneck scale 'learnt' is neither a number nor one of learned, channel"),
        ({"sites": ("mlp",)}, "no site is called 'mlp'; sites are attn_in"),
        ({"sites": ()}, "at least one site"),
        ({"sites": ("block_out",)}, "reads='sum' needs a sublayer around it: sites attn_out or mlp_out, not block_out"),
        ({"size": 0}, "bottleneck size 0 .* must be positive"),
        ({"reduction_factor": -2}, "reduction_factor -2 must be positive"),
        ({"dropout": 1.5}, r"bottleneck dropout 1.5 is not in \[0, 1\)"),
        ({"stochastic_depth": -0.1}, r"bottleneck stochastic_depth -0.1 is not in \[0, 1\)"),
        ({"gate": "row"}, "bottleneck gate 'row' is none of none, token, mean"),
    ],
)
def test_wrong_hyper_parameters_are_refused_when_stated(options, message):
    with pytest.raises(ValueError, match=message):
        bottleneck(**options)


def test_a_taken_name_and_an_absent_site_are_refused():
    with pytest.raises(ValueError, match="blocks/mlp_out/default is taken; give one of the two adapters another name"):
        attach(base(), [pfeiffer(size=3), parallel(size=3)], KEY)
    with pytest.raises(ValueError, match="this base has no site mlp_out: it has no blocks/mlp_norm/scale"):
        attach({"embed": base()["embed"]}, [pfeiffer(size=3)], KEY)
    with pytest.raises(ValueError, match=r"layers \[5\]: \[5\] not among layers 0 to 1"):
        attach(base(), [pfeiffer(size=3, layers=[5])], KEY)


def test_layers_of_a_cut_stack_may_be_chosen():
    params = attach(base(TINY, (1, 1)), [pfeiffer(size=3, layers=[1])], KEY)
    assert "mlp_out" in params["blocks_1_2"] and "mlp_out" not in params["blocks_0_1"]


def test_lora_and_adapters_stand_together_in_any_order():
    methods = [lora(rank=2), houlsby(size=3)]
    one, other = (moved(attach(base(), order, KEY)) for order in (methods, methods[::-1]))
    np.testing.assert_array_equal(logits(one), logits(other))


def test_adapter_plus_is_its_formula():
    entry = entry_of(adapter_plus(size=3), 1)
    assert entry.scale.shape == (16,) and "scale" in entry.trainable and entry.stochastic_depth == np.float32(0.1)
    inner = jax.nn.gelu((R + U) @ np.asarray(entry.down).T + np.asarray(entry.down_bias), approximate=False)
    want = (np.asarray(inner) @ np.asarray(entry.up) + np.asarray(entry.up_bias)) * np.asarray(entry.scale)
    np.testing.assert_allclose(entry(U, residual=R), U + want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [adapter_plus(size=3, stochastic_depth=0.5), parallel(size=3, stochastic_depth=0.5)])
def test_stochastic_depth_leaves_out_whole_rows_and_keeps_the_mean(method):
    entry, one = entry_of(method, 0), np.asarray(jax.random.normal(KEY, (1, 3, 16)))
    rows = np.repeat(one, 4000, axis=0)
    change = np.asarray(entry(rows, residual=rows, key=KEY)) - rows
    whole = np.asarray(entry(one, residual=one)) - one
    left_out = ~np.any(change, axis=(1, 2))
    assert 0.45 < left_out.mean() < 0.55
    np.testing.assert_allclose(change[~left_out], np.broadcast_to(2 * whole, change[~left_out].shape), rtol=1e-3, atol=1e-4)


def test_a_token_has_its_own_gate_or_the_mean_of_its_segments():
    """Padding, and how much of it there is, changes no gate of the others."""
    tokens = Tokens(jnp.asarray([[0, 1, 0, 0]] * 2), jnp.asarray([[1, 1, 2, 0]] * 2))
    h = np.asarray(jax.random.normal(KEY, (2, 4, 16)))
    none = np.zeros_like(h)  # the residual stream, so that h is read
    own = entry_of(pfeiffer(size=3, gate="token"), 1)
    gates = jax.nn.sigmoid(h @ np.asarray(own.gate) + np.asarray(own.gate_bias))
    ungated = dataclasses.replace(own, gate=None)(h, residual=none) - h
    np.testing.assert_allclose(own(h, residual=none, tokens=tokens) - h, ungated * np.asarray(gates)[..., None], rtol=1e-4, atol=1e-5)
    mean = dataclasses.replace(own, gating="mean")
    gates = np.asarray(gates)
    means = np.stack([gates[:, :2].mean(1), gates[:, :2].mean(1), gates[:, 2]], axis=1)
    got = np.asarray(mean(h, residual=none, tokens=tokens) - h)[:, :3]
    np.testing.assert_allclose(got, np.asarray(ungated)[:, :3] * means[..., None], rtol=1e-4, atol=1e-5)
    shorter = mean(h[:, :3], residual=none[:, :3], tokens=Tokens(tokens.positions[:, :3], tokens.segments[:, :3]))
    np.testing.assert_allclose(shorter, mean(h, residual=none, tokens=tokens)[:, :3], rtol=1e-5, atol=1e-6)


def test_a_gate_starts_at_about_a_half():
    entry = entry_of(pfeiffer(size=3, gate="mean"))
    fresh = get(attach(base(), [pfeiffer(size=3, gate="mean")], KEY), "blocks/mlp_out/default")
    assert fresh.gate.shape == (2, 16) and not fresh.gate_bias.any() and np.abs(fresh.gate).max() < 0.1 and fresh.gate.any()
    assert {"gate", "gate_bias"} <= set(entry.trainable)


def test_the_mean_is_within_a_segment_of_a_row():
    values, segments = jnp.asarray([[1.0, 3.0, 5.0, 9.0], [1.0, 2.0, 3.0, 6.0]]), jnp.asarray([[1, 1, 2, 0], [1, 1, 1, 1]])
    np.testing.assert_allclose(mean_within(values, segments), [[2, 2, 5, 9], [3, 3, 3, 3]])
