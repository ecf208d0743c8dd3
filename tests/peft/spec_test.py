"""Methods are data: there and back, through JSON too, and a wrong name is answered with the right one."""

import json

import pytest

from peftjax.peft.across_layers import across_layers
from peftjax.peft.adalora import adalora
from peftjax.peft.boft import boft
from peftjax.peft.bottleneck import adapter_plus, bottleneck, houlsby, scaled_parallel
from peftjax.peft.classifier import classifier
from peftjax.peft.compacter import compacter
from peftjax.peft.delora import delora
from peftjax.peft.dense_delta import dense_delta
from peftjax.peft.fourierft import fourierft
from peftjax.peft.fusion import fusion
from peftjax.peft.gated_lora import gated_lora
from peftjax.peft.gralora import gralora
from peftjax.peft.hira import hira
from peftjax.peft.hra import hra
from peftjax.peft.ia3 import ia3
from peftjax.peft.invertible import invertible
from peftjax.peft.loha import loha
from peftjax.peft.lokr import lokr
from peftjax.peft.lora import lora
from peftjax.peft.miss import miss
from peftjax.peft.oft import oft
from peftjax.peft.parts import bitfit, full, head_only, norm_only
from peftjax.peft.prefix import prefix
from peftjax.peft.prompt import p_tuning, prompt_tuning
from peftjax.peft.randlora import randlora
from peftjax.peft.reft import direft, reft
from peftjax.peft.road import road
from peftjax.peft.shira import shira
from peftjax.peft.spec import METHODS, as_code, from_data, to_data
from peftjax.peft.tokens import trainable_tokens
from peftjax.peft.vera import vera

EXAMPLES = [
    lora(), lora(rank=4, alpha=8.0, targets=("q_proj", ".*/v"), dropout=0.1, rslora=True, init="gaussian"),
    lora(layers=(3, 4), name="tone"),
    lora(rank_pattern={"blocks/7/attn/q": 4, "down_proj": 32}, alpha_pattern={".*/(q|v)": 2.0}),
    bottleneck(), houlsby(size=36), scaled_parallel(norm="both"), full(), full(layers=(1,)), bitfit(add=True),
    norm_only(name="norms"), head_only(), classifier(labels=("no", "yes"), hidden=False), trainable_tokens(ids=(3, 50), targets="lm_head"),
    lora(dora=True),
    lora(lora_bias=True, ensure_weight_tying=False), full(targets=("embed_tokens",), ensure_weight_tying=False), bitfit(targets="all"),
    hira(init="gaussian", rank_pattern={"q_proj": 4}), loha(rank=4, alpha_pattern={"q_proj": 2.0}), lokr(decompose_both=True),
    miss(form="mini", mini_rank=2), shira(mask="magnitude", seed=3), vera(d_initial=0.2),
    delora(strength_pattern={"q_proj": 1.5}), fourierft(frequency_pattern={"q_proj": 9}), gralora(hybrid_rank=2), randlora(bases="sparse"),
    ia3(feedforward=()), oft(blocks=4, exact=True), boft(factors=2), hra(gram_schmidt=True), road(variant=4), adapter_plus(gate="mean"),
    compacter(layers=(1, 2)), invertible(init="bert"), reft(rank=4), direft(tied=True), gated_lora(alpha=2.0),
    prompt_tuning(init="text", ids=(3, 1)), p_tuning(hidden=9), prefix(hidden=9, gates=2, layers=(1,)),
    dense_delta(layers=(1,)), across_layers(lora(rank_pattern={"q_proj": 4}, layers=(1,)), name="tone"), across_layers(compacter()),
    fusion(of=("en", "de"), value=False), adalora(target_rank=4, orthogonality=0.1),
]  # fmt: skip


@pytest.mark.parametrize("method", EXAMPLES, ids=lambda method: type(method).__name__)
def test_there_and_back(method):
    assert from_data(to_data(method)) == method
    assert from_data(json.loads(json.dumps(to_data(method)))) == method


def test_every_method_is_among_the_examples():
    assert {type(method) for method in EXAMPLES} == set(METHODS.values())


def test_the_order_of_patterns_is_kept():
    patterns = {"blocks/7/attn/q": 4, ".*/q": 2, "a": 1}
    assert list(from_data(to_data(lora(rank_pattern=patterns))).rank_pattern) == list(patterns)


def test_lists_ranges_and_mappings_mean_what_tuples_and_pairs_do():
    wanted = lora(targets=("q_proj",), layers=(1, 2), rank_pattern={"q_proj": 4})
    assert from_data(
        {"method": "lora", "targets": ["q_proj"], "layers": range(1, 3), "rank_pattern": {"q_proj": 4}}
    ).layers == range(1, 3)
    assert to_data(lora(targets=["q_proj"], layers=range(1, 3), rank_pattern={"q_proj": 4})) == to_data(wanted)


@pytest.mark.parametrize("method", [
    lora(), lora(rank=4, targets=("q_proj",), rank_pattern={"blocks/7/attn/q": 2}), METHODS["bottleneck"](size=8, name="tone"),
    METHODS["across_layers"](lora(rank=2)),
], ids=lambda method: type(method).__name__)  # fmt: skip
def test_code_makes_the_method_again_without_what_is_the_default(method):
    assert eval(as_code(method), dict(METHODS)) == method  # noqa: S307 (what was just written)
    assert "dropout" not in as_code(method) and as_code(lora()) == "lora()"


def test_missing_fields_are_the_defaults():
    assert from_data({"method": "lora", "rank": 4}) == lora(rank=4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"method": "loar"}, r"no method is called 'loar' \(did you mean 'lora'\?\); methods are lora, adalora, bottleneck"),
        ({"rank": 8}, "no method is called None"),
        ({"method": "lora", "rnak": 8}, r"lora has no field 'rnak' \(did you mean 'rank'\?\); fields are rank, alpha"),
        ({"method": "bottleneck", "rank": 8}, "bottleneck has no field 'rank'"),
        ({"method": "lora", "rank": 0}, "LoRA rank 0 is not positive"),
    ],
)
def test_wrong_data_are_answered_with_the_right_names(data, message):
    with pytest.raises(ValueError, match=message):
        from_data(data)
