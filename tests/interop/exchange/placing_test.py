"""From what a file holds to methods: whatever modules, ranks and alphas there are, the methods make exactly that room."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TIED, TINY, base

from peftjax.interop.exchange.adapter import extract
from peftjax.interop.exchange.placing import by_layers, methods_for
from peftjax.peft import attach, cut_points, lora
from peftjax.peft.select import named

MODULES = ("attn/q", "attn/v", "mlp/down")
DEFAULT = {"rank": 2, "alpha": 3.0}
PATTERNS = {"rank": "rank_pattern", "alpha": "alpha_pattern"}


def room(methods, config=TINY):
    """(rank, scale) that methods make room for, by module with the layer's number."""
    params = attach(base(config, cut_points(methods, config.layers)), methods, jax.random.key(0))
    found = {}
    for path, piece in extract(params, methods).pieces.items():
        used = piece.arrays["a"].any(axis=-1) | piece.arrays["b"].any(axis=-1)
        found[path.rpartition("/")[0]] = (int(used.sum()), float(piece.arrays["scale"]))
    return found


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_the_methods_make_room_for_exactly_what_there_is(data):
    places = [f"blocks/{layer}/{module}" for layer in range(TINY.layers) for module in MODULES] + ["embed"]
    value = st.fixed_dictionaries({"rank": st.sampled_from([1, 2, 3]), "alpha": st.sampled_from([2.0, 3.0, 8.0])})
    found = data.draw(st.dictionaries(st.sampled_from(places), value, min_size=1))
    rslora = data.draw(st.booleans())
    methods = methods_for(lora, found, TINY.layers, DEFAULT, PATTERNS, rslora=rslora)
    assert all(method.rslora == rslora and (method.rank, method.alpha) == (2, 3.0) for method in methods)
    per = {path: f["rank"] ** 0.5 if rslora else f["rank"] for path, f in found.items()}
    wanted = {path: (f["rank"], float(np.float32(f["alpha"] / per[path]))) for path, f in found.items()}
    assert room(methods) == wanted


def test_what_agrees_with_the_file_needs_no_pattern_and_no_layers():
    found = {f"blocks/{layer}/attn/{m}": DEFAULT for layer in range(2) for m in "qv"} | {"head": DEFAULT}
    (method,) = methods_for(lora, found, 2, DEFAULT, PATTERNS)
    assert method == lora(rank=2, alpha=3.0, targets=("q_proj", "v_proj", "lm_head"))
    assert room([method], TIED) == {path: (2, 1.5) for path in found}


def test_modules_on_other_layers_are_methods_of_their_own():
    other = DEFAULT | {"rank": 1}
    found = {"blocks/1/attn/q": DEFAULT, "blocks/0/attn/v": other, "blocks/1/attn/v": other}
    everywhere, one_layer = methods_for(lora, found, 2, DEFAULT, PATTERNS)
    assert everywhere.layers is None and everywhere.rank_pattern == {"v_proj": 1}
    assert one_layer.layers == (1,) and one_layer.targets == ("q_proj",)


def test_names_of_the_field_where_there_are_any():
    assert [named(module) for module in ("blocks/attn/q", "embed", "head", "blocks/attn_norm")] == [
        "q_proj", "embed_tokens", "lm_head", "blocks/attn_norm",
    ]  # fmt: skip
    assert by_layers(["blocks/0/attn/q", "blocks/2/attn/q", "embed"]) == {"blocks/attn/q": {0, 2}, "embed": {None}}
