"""What is timed, and what stands for what: no more than tells something new, and no less."""

import jax
from tiny import TINY, base, tokens

from peftjax.interop.base import Base
from peftjax.models.decoder import Decoder
from peftjax.nn.quant import quantise
from peftjax.nn.tree import get, put
from peftjax.peft import houlsby, lora
from peftjax.study.advice.costs import PROMPT_TOKENS, prompts_timed, standing_for
from peftjax.study.advice.needs import Needs
from peftjax.study.arms import Arm
from peftjax.study.programs import Case

BASE = Base("tiny", TINY, base(), None, "f" * 64)
MERGED = [
    Arm("all", (lora(rank=2),), "merged"), Arm("q and v", (lora(rank=3, targets=".*/(q|v)"),), "merged"),
    Arm("DoRA", (lora(rank=2, dora=True),), "merged"),
]


def test_merged_arms_are_one_program_on_a_dense_base_and_others_are_their_own():
    beside = [Arm("LoRA", (lora(rank=2),)), Arm("scaled", (lora(rank=2, alpha=9.0),)), Arm("rank 3", (lora(rank=3),)),
              Arm("Houlsby", (houlsby(size=2),)), Arm("bank", (lora(rank=2),), "bank", 2), Arm("more", (lora(rank=2),), "bank", 3)]
    assert standing_for(BASE, MERGED + beside) == {
        "all": "all", "q and v": "all", "DoRA": "all", "LoRA": "LoRA", "scaled": "LoRA", "rank 3": "rank 3", "Houlsby": "Houlsby",
        "bank": "bank", "more": "more",
    }


def test_on_a_quantised_base_what_was_merged_decides():
    """Weights that nothing was merged into stay quantised."""
    params = base()
    for path in ("blocks/attn/q/kernel", "blocks/mlp/down/kernel"):
        params = put(params, path, quantise(get(params, path), "int8"))
    held = Base("tiny", TINY, params, None, "f" * 64)
    assert standing_for(held, MERGED) == {"all": "all", "q and v": "q and v", "DoRA": "all"}


def test_arms_of_one_program_lower_to_one():
    def lowered(arm: Arm) -> str:
        return jax.jit(lambda params: Decoder(TINY).apply({"params": params}, tokens())).lower(arm.params(BASE.params)).as_text()

    assert len({lowered(arm) for arm in MERGED}) == 1 and lowered(Arm("LoRA", (lora(rank=2),))) != lowered(MERGED[0])


def test_long_prompts_are_timed_on_fewer_rows_of_their_own_length():
    assert prompts_timed(Needs(batch=8, prompt=128)) == Case("forward", 2, 128)
    assert prompts_timed(Needs(batch=8, prompt=32)) == Case("forward", 8, 32) and PROMPT_TOKENS == 256
    assert prompts_timed(Needs(batch=1, prompt=1000)) == Case("forward", 1, 1000)
    assert prompts_timed(Needs(batch=50, prompt=1000)) == Case("forward", 2, 1000)  # a bank of one row would hold one adapter


def test_an_accelerator_is_asked_for_all_rows(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert prompts_timed(Needs(batch=50, prompt=1000)) == Case("forward", 50, 1000)
