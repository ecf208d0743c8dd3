"""PC1: merging is exact, and an adapter that is taken off leaves the base bit for bit.

    python scripts/paper_check.py --config configs/studies/pc1.py            SmolLM2-135M and T128
    python scripts/paper_check.py --config configs/studies/pc1.py:tiny       T128 alone
    python scripts/paper_check.py --config configs/studies/pc1.py:smollm2    SmolLM2-135M alone, five methods

Papers: LoRA (2106.09685), "no additional inference latency" once merged; DoRA (2402.09353), LoHa (2108.06098), IA3 (2205.05638), OFT
(2306.07280), PiSSA (2404.02948). Set-up: 64 prompts of 16 tokens, every trained value moved by noise of deviation 0.02, halved until no
logit moves by more than 1, float32. Predicted: merged and unmerged logits within 1e-4, the same greedy texts, the base's logits exactly
once detached, the base's fingerprint unchanged after a merge, methods that start as the base within 1e-4 of it. Controls: in float64 merged
and unmerged logits of 8 prompts within 1e-10; bottlenecks refuse to merge.
Measured on T128 for all seven: merged logits within 1.6e-5 where they are moved by .09 to .94, in float64 within 4.0e-14, greedy texts the
same in all 448 cases, starts exactly the base, PiSSA's within 1.1e-5. On SmolLM2-135M: within 1.7e-4 (DoRA), 6.7e-4 (LoRA), 1.1e-3 (LoHa
and OFT) and 2.5e-3 (IA3), so the bound does not hold; in float64 within 4.8e-13, so it is rounding, which the model without a merge has
too (1.2e-4 to 1.6e-4 of a logit on these 8 prompts). Greedy texts are the same in 320 cases, detached logits and fingerprints exactly
those of the base.
"""

from ml_collections import ConfigDict

from peftjax.peft import houlsby, ia3, loha, lora, oft, pfeiffer
from peftjax.peft.spec import to_data
from peftjax.study.checks.pc1 import default_config
from peftjax.train.config import SMOLLM2


def get_config(variant: str = ""):
    """The config; `variant` is "", "tiny", "smollm2" or "runlocal" (T128 with a few prompts)."""
    config = default_config()
    merged = {
        "LoRA": lora(rank=16), "rsLoRA": lora(rank=16, rslora=True), "DoRA": lora(rank=16, dora=True), "LoHa": loha(rank=8), "IA3": ia3(),
        "OFT": oft(), "PiSSA": lora(rank=16, init="pissa_niter_4"),
    }
    config.methods = ConfigDict({name: to_data(method) for name, method in merged.items()})
    config.refuse = ConfigDict({"Houlsby": to_data(houlsby(size=16)), "Pfeiffer": to_data(pfeiffer(size=16))})
    config.bases = ConfigDict({"T128": "tiny:t128"} if variant in ("tiny", "runlocal") else {"SmolLM2-135M": SMOLLM2, "T128": "tiny:t128"})
    if variant == "smollm2":
        del config.bases["T128"], config.methods["rsLoRA"], config.methods["PiSSA"]
        return config
    if variant == "runlocal":
        config.prompts, config.max_new = 8, 4
    elif variant not in ("", "tiny"):
        raise ValueError(f"no variant {variant!r}; there are tiny, smollm2 and runlocal")
    return config
