"""PC5: at matched trainable numbers, is LoRA better on the MLP than on attention?

    python scripts/paper_check.py --config configs/studies/pc5.py

Papers: LoRA Without Regret (2025) and 2405.09673 (2024), MLP above attention; 2110.04366 (2021), attention at the smallest budgets. Set-up:
T64, data and steps of PC9 (configs/studies/pc9.py); attention at rank 19, MLP at 11, all linear layers at 7: 34,048, 33,792 and 34,048
trained numbers; rate tuned for each, five seeds. Predicted: all linear layers at least as good as the MLP alone, and that better than
attention alone; else "not reproduced at this scale".
Measured (48 groups of test items): all linear layers 10.5 % below the MLP [8.7, 12.3], p below .001 after Holm's correction; the MLP 2.4 %
below attention [-0.5, 5.3], p .09, which are not told apart; every best rate is 1e-2, inside its grid. On the first training of T64, of
perplexity 111 (configs/pretrain/t64.py), the MLP was told apart, 4.3 % below attention [2.7, 5.8], and all linear layers were 10.5 % below
it [7.0, 14.0].
"""

from pathlib import Path
from runpy import run_path

from peftjax.peft import lora
from peftjax.study.checks.trials import arm, trials_config


def get_config(variant: str = ""):
    """The config; `variant` is "", or "runlocal" with few steps."""
    config, shared = trials_config("pc5"), run_path(str(Path(__file__).with_name("pc9.py")))
    shared["on_commands"](config)
    config.arms = {
        "attention": arm(lora(rank=19, alpha=38, targets=("q_proj", "k_proj", "v_proj", "o_proj"))),
        "MLP": arm(lora(rank=11, alpha=22, targets=("gate_proj", "up_proj", "down_proj"))),
        "all linear": arm(lora(rank=7, alpha=14)),
    }
    config.centre = 1e-2
    shared["in_variant"](config, variant)
    return config
