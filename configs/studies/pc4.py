"""PC4: with s = alpha / r the gradient of B shrinks as the rank grows, with s = alpha / sqrt(r) it keeps its size.

    python scripts/paper_check.py --config configs/studies/pc4.py

Paper: rsLoRA (2312.03732, 2023). Set-up: T128, LoRA on all linear layers at init, ranks 1 to 64, three seeds of A, 16 rows of 64 tokens of
general text. Predicted: exponents of the rank of the norm of dl/dB of -1/2 and 0, within 0.1; of what one Adam step adds in [-1/2, 0] for
alpha / r, [0, 1/2] for alpha / sqrt(r), [1/2, 1] for a constant s. It is the theorem's quantity that is checked, not better training.
Measured: -0.479 +- 0.052 and +0.021 +- 0.052; one step adds -0.055, +0.445 and +0.945 (each +- 0.019): all hold.
"""

from peftjax.study.checks.pc4 import default_config


def get_config(variant: str = ""):
    """The config; `variant` is "", or "runlocal" with two ranks."""
    config = default_config()
    config.base = "tiny:t128"
    if variant == "runlocal":
        config.ranks = (4, 16)
    elif variant:
        raise ValueError(f"no variant {variant!r}; there is runlocal")
    return config
