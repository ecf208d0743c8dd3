"""What servers make of adapters, as a matrix; the reasons name what is in the file."""

import dataclasses
import functools
import re

import jax
import pytest
import tiny
import tiny_checkpoint

from peftjax.interop.exchange.adapter import extract
from peftjax.interop.exchange.lint import FEATURES, IGNORES, REFUSES, SERVERS, TAKES, Finding, as_table, lint
from peftjax.models.config import DecoderConfig
from peftjax.models.encoder_config import EncoderConfig
from peftjax.peft.attach import attach
from peftjax.peft.bottleneck import bottleneck
from peftjax.peft.classifier import classifier
from peftjax.peft.lora import lora
from peftjax.peft.parts import bitfit, full, norm_only
from peftjax.peft.tokens import trainable_tokens

SIZES = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 4, "ff": 24}
BASES = {
    "llama": DecoderConfig(**SIZES, tied=False),
    "tied": DecoderConfig(**SIZES, tied=True),
    "mistral": DecoderConfig(**SIZES, tied=False, window=8),
    "qwen2": DecoderConfig(**SIZES, tied=False, qkv_bias=True, family="qwen2"),
    "phi3": DecoderConfig(**SIZES, tied=False, family="phi3"),
    "gpt2": DecoderConfig(
        **SIZES | {"kv_heads": 4}, tied=True, family="gpt2", learned_positions=True, layer_norm=True, gated=False, activation="gelu_tanh",
        qkv_bias=True, out_bias=True, mlp_bias=True, max_length=32,
    ),
    "bert": EncoderConfig(40, 16, 2, 4, 24, max_length=32, labels=("no", "yes")),
    "roberta": EncoderConfig(40, 16, 2, 4, 24, max_length=32, labels=("no", "yes"), family="roberta", position_offset=2, types=1),
}  # fmt: skip
NAMES = ("vLLM", "SGLang", "llama.cpp", "HF PEFT", "AdapterHub")
LETTERS = {"t": TAKES, "i": IGNORES, "r": REFUSES}


@functools.cache
def base_params(name):
    return tiny_checkpoint.random_params(BASES[name])


def findings(base, *methods) -> dict[str, Finding]:
    params = tiny.moved(attach(base_params(base), methods, jax.random.key(0)))
    return {finding.server: finding for finding in lint(extract(params, methods), BASES[base])}


def qv(**settings):
    return lora(**{"targets": ("q_proj", "v_proj"), "rank": 8, **settings})


PFEIFFER = bottleneck(size=4)
EMBED = lora(rank=8, targets=("q_proj", "v_proj", "embed_tokens"))
HEAD = lora(rank=8, targets=("q_proj", "v_proj", "lm_head"))
# One letter for each of NAMES: takes, takes ignoring, refuses.
MATRIX = [
    ("llama", (qv(),), "ttttt"),
    ("llama", (qv(rank=12),), "ttttt"),
    ("llama", (qv(rank=600),), "rtttt"),
    ("llama", (qv(rslora=True),), "tittt"),
    ("llama", (qv(rank_pattern={"v_proj": 4}),), "trttr"),
    ("llama", (qv(alpha_pattern={"v_proj": 4.0}),), "tittr"),
    ("llama", (qv(lora_bias=True),), "rrrtr"),
    ("llama", (qv(dora=True),), "rrrtt"),
    ("llama", (lora(rank=8),), "ttttr"),
    ("llama", (lora(rank=8, targets="q_proj"),), "trttt"),
    ("llama", (lora(rank=8, targets="v_proj"),), "trttt"),
    ("llama", (lora(rank=8, targets="up_proj"),), "trttt"),
    ("llama", (lora(rank=8, targets="gate_proj"),), "ttttr"),
    ("llama", (EMBED,), "ttttr"),
    ("llama", (HEAD,), "ttttr"),
    ("tied", (EMBED,), "tirtr"),
    ("tied", (HEAD,), "ttrtr"),
    ("mistral", (EMBED,), "rtttr"),
    ("qwen2", (EMBED,), "rtttr"),
    ("llama", (qv(), full(targets="lm_head")), "rirtt"),
    ("llama", (qv(), norm_only()), "rrrtr"),
    ("llama", (qv(), trainable_tokens(ids=(1, 2))), "rirtr"),
    ("qwen2", (lora(rank=8), bitfit()), "rrrtr"),
    ("llama", (PFEIFFER,), "rrrrt"),
    ("llama", (qv(), PFEIFFER), "rrrrt"),
    ("phi3", (lora(rank=8),), "trttr"),
    ("gpt2", (lora(rank=8),), "rrttr"),
    ("bert", (lora(rank=8, targets=("query", "value")), classifier(3, hidden=False)), "trrtt"),
    ("roberta", (lora(rank=8, targets=("query", "value")), classifier(3)), "rrrtt"),
]


@pytest.mark.parametrize("base, methods, verdicts", MATRIX, ids=str)
def test_verdicts(base, methods, verdicts):
    found = findings(base, *methods)
    assert tuple(found) == NAMES == tuple(server.name for server in SERVERS)
    told = "\n" + as_table(list(found.values()))
    assert {name: finding.verdict for name, finding in found.items()} == {n: LETTERS[v] for n, v in zip(NAMES, verdicts, strict=True)}, told
    for finding in found.values():
        assert finding.version and (finding.reasons or finding.verdict == TAKES)


@pytest.mark.parametrize(
    "base, methods, server, reason",
    [
        ("llama", (qv(rank=12),), "SGLang", "needs --max-lora-rank 12, if loaded after the start"),
        ("llama", (qv(rank=33),), "vLLM", "needs --max-lora-rank 64"),
        ("llama", (qv(rank=600),), "vLLM", "rank 600: the largest --max-lora-rank is 512"),
        ("llama", (qv(alpha=4.0, rslora=True, rank=16),), "SGLang", "use_rslora, without which the update is 4 times smaller: .*40835"),
        ("llama", (qv(alpha=4.0, rslora=True, rank=16),), "vLLM", "the config stands for scale 1$"),
        ("llama", (qv(rank_pattern={"v_proj": 4}),), "SGLang", "ranks 4, 8: its buffers hold one rank"),
        ("llama", (qv(alpha_pattern={"v_proj": 4.0}),), "vLLM", "older versions took alpha_pattern and ignored it"),
        ("llama", (qv(alpha_pattern={"v_proj": 4.0}),), "SGLang", "alpha_pattern, 2 exceptions from 8: it scales by alpha / r"),
        ("llama", (qv(lora_bias=True),), "vLLM", "lora_B.bias and 3 more: .*25807"),
        ("llama", (qv(dora=True),), "vLLM", "use_dora: it has no DoRA .*6983"),
        ("llama", (qv(dora=True),), "llama.cpp", "no GGUF file holds it: .*\n.*columns of a trained length .*merge it"),
        ("llama", (lora(targets="q_proj"),), "SGLang", "self_attn with q_proj alone and 1 more: .*needs q_proj and v_proj"),
        ("llama", (qv(), full(targets="lm_head")), "vLLM", "lm_head.weight whole: .*9280"),
        ("mistral", (EMBED,), "vLLM", "model.embed_tokens: .* not known to be served on MistralForCausalLM"),
        ("llama", (PFEIFFER,), "vLLM", "no HF PEFT file holds it: .*AdapterHub"),
        ("llama", (PFEIFFER,), "llama.cpp", "no GGUF file holds it: .*\n.*nonlinear"),
        ("tied", (HEAD,), "llama.cpp", "no output.weight"),
        ("tied", (EMBED,), "SGLang", "^lm_head: it skips what is not among target_modules"),
        ("gpt2", (lora(rank=8),), "vLLM", "no LoRA on GPT2LMHeadModel"),
        ("llama", (qv(alpha=24.0),), "llama.cpp", "one alpha for the file, 24;"),
    ],
)
def test_reasons_name_what_is_in_the_file_and_what_to_do(base, methods, server, reason):
    assert any(re.search(reason, told) for told in findings(base, *methods)[server].reasons), findings(base, *methods)[server]


def test_rank_16_needs_no_flag():
    assert not any("--max-lora-rank" in reason for reason in findings("llama", qv(rank=12))["vLLM"].reasons)


def test_another_vocabulary_is_seen():
    config = dataclasses.replace(BASES["llama"], vocab_size=41)
    params = tiny.moved(attach(base_params("llama"), (EMBED,), jax.random.key(0)))
    found = {finding.server: finding for finding in lint(extract(params, (EMBED,)), config)}
    assert found["vLLM"].verdict == found["SGLang"].verdict == REFUSES
    assert "embed_tokens.lora_embedding_A for 40 tokens, not 41" in found["vLLM"].reasons[0]


def test_servers_speak_of_features_that_exist():
    for server in SERVERS:
        assert {*server.refuses, *server.ignores, *server.notes} <= {*FEATURES, ""}
        assert not set(server.refuses) & set(server.ignores)


def test_the_table_names_each_server_once_and_keeps_its_columns():
    table = as_table([*findings("llama", qv(rslora=True)).values(), *findings("tied", EMBED).values()]).splitlines()
    assert table[0].split() == ["server", "version", "verdict", "why"]
    for name in NAMES:
        assert sum(line.startswith(name) for line in table) == 2
    assert all(line[:7].strip() or line.startswith(" " * 11) for line in table)
    assert any(line.startswith("SGLang") and IGNORES in line and "40835" in line for line in table)
