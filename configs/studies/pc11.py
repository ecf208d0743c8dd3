"""PC11, exact part: LoftQ and QPiSSA start nearer to the weight than its quantised form, and NF4 takes 4.127 bits a weight.

    python scripts/paper_check.py --config configs/studies/pc11.py           T128, and q, v and down of SmolLM2-135M
    python scripts/paper_check.py --config configs/studies/pc11.py:tiny      T128 alone

Papers: QLoRA (2305.14314), LoftQ (2310.08659), PiSSA (2404.02948). Set-up: rank 16, four ways of holding a weight in 4 bits; there is no
form of 2 or 3 bits here, where the papers' gains are largest. SmolLM2's file is 4-bit itself, affine in blocks of 32: that form loses
nothing on it. Predicted: both starts reduce the error everywhere, packed bytes within 1 %.
Measured on T128 alone: 4.130 bits of NF4, whose relative error of .0910 falls to .0758 with LoftQ and to .0668 with QPiSSA; over four forms
it falls by 16.6 to 16.8 % and by 26.5 to 26.7 %.
"""

from ml_collections import ConfigDict

from peftjax.study.checks.pc11 import default_config
from peftjax.train.config import SMOLLM2


def get_config(variant: str = ""):
    """The config; `variant` is "", "tiny" or "runlocal" (T128 with one form)."""
    config = default_config()
    config.bases = ConfigDict({"T128": "tiny:t128"} if variant else {"T128": "tiny:t128", "SmolLM2-135M": SMOLLM2})
    if variant == "runlocal":
        config.schemes = ("NF4",)
    elif not variant:
        config.targets = ("q_proj", "v_proj", "down_proj")
    elif variant != "tiny":
        raise ValueError(f"no variant {variant!r}; there are tiny and runlocal")
    return config
