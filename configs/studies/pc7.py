"""PC7: who forgets less, and does forgetting follow the KL divergence from the base?

    python scripts/paper_check.py --config configs/studies/pc7.py

Papers: LoRA Learns Less and Forgets Less (2405.09673, 2024); RL's Razor (2509.04259, 2025: forgetting is a function of the KL on the new
task). Set-up: T64, trained on English prose, goes on with functions of Python's standard library without docstrings, 60 steps of 2 x 128
tokens, constant rate; full fine-tuning, LoRA of rank 4, 16 and 64 on all linear layers, Houlsby and Pfeiffer with about the numbers of rank
16, IA3; five rates of ratio 3.16 and more where the best is at an edge, two seeds, checkpoints at step 30 and 60. Target loss and KL are
of 64 held-out functions, forgetting is of general text. Predicted: at own rates LoRA of rank 16 forgets less than full fine-tuning; over
all points Spearman's correlation of KL and forgetting is at least .9; at one loss on the target sources disagree: the sign is told, not
asserted. Control: LoRA with its scale times 0 to 1.25.
"""

from peftjax.peft import full, houlsby, ia3, lora, pfeiffer
from peftjax.study.checks.trials import arm, trials_config


def get_config(variant: str = ""):
    """The config; `variant` is "", or "runlocal" with two arms and few steps."""
    config = trials_config("pc7")
    run = config.run
    run.base.uri = "tiny:t64"
    run.data.name, run.data.length = "python_source", 128
    run.data.fractions = {"train": 0.6, "validation": 0.2, "test": 0.2}
    run.train.steps, run.train.batch_size = 60, 2
    run.checkpoint.every, run.checkpoint.keep_newest = 30, 10
    run.eval.rows = 64
    config.arms = {
        "full": arm(full()), "LoRA r4": arm(lora(rank=4, alpha=16)), "LoRA r16": arm(lora(rank=16, alpha=16)),
        "LoRA r64": arm(lora(rank=64, alpha=16)), "Houlsby": arm(houlsby(size=64)), "Pfeiffer": arm(pfeiffer(size=128)), "IA3": arm(ia3()),
    }
    config.centre, config.tuning_seeds, config.rounds = 1e-2, (0, 1), 1
    config.starts = {"full": -1, "IA3": 1}
    if variant == "runlocal":
        config.arms = {name: config.arms[name] for name in ("full", "LoRA r16")}
        run.train.steps, run.checkpoint.every, run.eval.rows = 25, 10, 8
        config.rates, config.rounds, config.tuning_seeds = 3, 0, (0, 1)
    elif variant:
        raise ValueError(f"no variant {variant!r}; there is runlocal")
    return config
