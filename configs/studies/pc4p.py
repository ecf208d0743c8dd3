"""PC4, statistical part: rank 64 with s = alpha / sqrt(r) against s = alpha / r, each at a rate of its own.

    python scripts/paper_check.py --config configs/studies/pc4p.py

Paper: rsLoRA (2312.03732, 2023). Set-up: T128, data and steps of PC9 (configs/studies/pc9.py), LoRA of rank 64 on all linear layers with
the scales of PC4 (.25 and .5, which agree at rank 16); rate tuned for each, five seeds. Predicted: a tie, losses within 1 % by two
one-sided tests.
Measured (64 test items in 48 groups): not a tie: alpha / sqrt(r) ends 4.1 % above alpha / r [2.8, 5.5], at best rates of 3.16e-3 and 1e-2,
both inside their grids. Rates are 3.16 apart and the scales 2, so that the grid may lie better for one of them; a finer one was not run.
"""

from pathlib import Path
from runpy import run_path

from peftjax.peft import lora
from peftjax.study.checks.pc4p import PLAIN, STABILISED
from peftjax.study.checks.trials import arm, trials_config


def get_config(variant: str = ""):
    """The config; `variant` is "", or "runlocal" with few steps."""
    config, shared = trials_config("pc4p"), run_path(str(Path(__file__).with_name("pc9.py")))
    shared["on_commands"](config)
    config.runs, config.run.base.uri = "", "tiny:t128"
    config.arms = {PLAIN: arm(lora(rank=64, alpha=16)), STABILISED: arm(lora(rank=64, alpha=4, rslora=True))}
    config.centre = 1e-2
    shared["in_variant"](config, variant)
    return config
