"""PC12, statistical part: what is saved when many runs share one program, and when the worse ones stop early.

    python scripts/paper_check.py --config configs/studies/pc12.py            or pc12.py:times, in a quiet hour

Papers: LoRAFusion (2510.00206, 2025); successive halving (1502.07943, 2015). Set-up: T64, LoRA of rank 16 on all linear layers, 2 and 8
members of 32, 128 and 512 tokens a step against as many solo steps, in turns; then, on data and steps of PC9 (configs/studies/pc9.py), LoRA
of rank 8 at 16 rates of ratio 1.78, three seeds, all to the end against halving at steps 10, 20 and 40. Predicted: more than twice as fast
at 32 tokens, less with more; the halving saves at least 60 % of the steps, which its rungs decide, and finds the same rate, which they do
not. The exact part, that members are what solo runs are, is held by tests/train/population.
Measured on two cores that nothing else used (15 turns, 95 % of t), times on T64's random weights: 8 members of 32 tokens are 1.21 times as
fast [1.17, 1.25], not as predicted; 1.20 [1.17, 1.22] at 128 tokens, 1.05 [0.95, 1.16] at 512. Two members are 0.92 [0.85, 1.00], 0.95
[0.89, 1.00] and 1.00 [0.95, 1.06] times as fast. On busy cores it was 1.36 [1.10, 1.68] and, at 512 tokens, 0.71 [0.58, 0.88] for eight.
The search: halving saves 62.5 % of the steps and finds the rate 1e-2 that all 16 to the end find, with each of three seeds.
"""

from pathlib import Path
from runpy import run_path

from peftjax.peft import lora
from peftjax.study.checks.pc12 import ARM, default_config
from peftjax.study.checks.trials import arm


def get_config(variant: str = ""):
    """The config; `variant` is "", "times" without the search, or "runlocal" with two cases and few steps."""
    config, shared = default_config(), run_path(str(Path(__file__).with_name("pc9.py")))
    shared["on_commands"](config)
    config.runs = ""
    config.arms = {ARM: arm(lora(rank=8, alpha=16))}
    config.centre, config.rates, config.factor, config.seeds = 1e-2, 16, 10**0.25, (0, 1, 2)
    if variant == "times":
        config.seeds = ()
    elif variant == "runlocal":
        config.counts, config.shapes, config.turns, config.rates, config.factor = (2,), ((1, 32), (1, 64)), 3, 4, 10.0
        config.run.train.steps, config.rungs, config.seeds, config.run.eval.rows = 12, (3, 6), (0,), 8
    elif variant:
        raise ValueError(f"no variant {variant!r}; there are times and runlocal")
    return config
