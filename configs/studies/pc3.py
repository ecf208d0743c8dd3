"""PC3: LoRA's best learning rate lies above that of full fine-tuning; whether it moves with the rank is a matter of the scale.

    python scripts/paper_check.py --config configs/studies/pc3.py

Papers: LoRA Without Regret (2025), 10 times and no dependence on the rank with s = alpha / r; 2602.06204 (2026). Set-up: T64, data and
steps of PC9 (configs/studies/pc9.py), all linear layers (of full fine-tuning: all weights), ranks 1, 4, 16, 64 under three scales that
agree at 16, five rates of ratio 3.16 and more where the best is at an edge, three seeds. Predicted: ratio in [2, 30]; exponents of the rank
in [0, .5], .5 lower and 1 lower, within .25; for alpha / r training losses of ranks 4 and 64 around step 20 within 2 %. At width 64 an
extrapolation of the papers' 10 times gives about 1.3 times: information, no failure. All arms train for 60 steps; for runs so short the
papers see 15 times.
Measured (165 runs and more at edges, loss on validation, 95 % of t over three seeds; every optimum inside its grid): rank 16's best rate is
1.85 times full fine-tuning's [1.19, 2.88], which passes the rule and is below the predicted range; exponents +0.06 [+0.03, +0.09],
-0.17 [-0.22, -0.12] and -0.42 [-0.47, -0.37], ordered and inside their ranges, but .23 and .48 below the first, not .5 and 1;
rank 64's early loss is 1.3 % above rank 4's at 1e-2. The rule looks at ranges alone. The papers' control, SGD, was not run.
"""

from pathlib import Path
from runpy import run_path

from peftjax.peft import full, lora
from peftjax.study.checks.pc3 import RANKS, SCALES, arm_name
from peftjax.study.checks.trials import arm, trials_config


def get_config(variant: str = ""):
    """The config; `variant` is "", or "runlocal" with few steps."""
    config, shared = trials_config("pc3"), run_path(str(Path(__file__).with_name("pc9.py")))
    shared["on_commands"](config)
    config.arms = {"full": arm(full())} | {
        arm_name(scale, rank): arm(lora(rank=rank, alpha=scale_of(rank) * rank)) for scale, scale_of in SCALES.items() for rank in RANKS
    }
    config.centre, config.tuning_seeds = 1e-2, (0, 1, 2)
    config.starts = {"full": -1} | {
        arm_name(scale, rank): start for scale, rank, start in (("constant", 64, -1), ("constant", 1, 1), ("alpha/sqrt(r)", 1, 1))
    }
    shared["in_variant"](config, variant)
    return config
