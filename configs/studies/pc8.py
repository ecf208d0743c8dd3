"""PC8: PiSSA's loss falls faster at LoRA's rate; at rates of their own both end alike.

    python scripts/paper_check.py --config configs/studies/pc8.py

Paper: PiSSA (2404.02948, 2024), whose tables have one rate for both. Set-up: that of PC9 (configs/studies/pc9.py), with whose runs it
shares those of LoRA and PiSSA. Predicted: (a) a lower training loss around step 20 in at least four of five seeds at LoRA's rate; (b)
within 1 % at own rates, by two one-sided tests; (c) a lower best rate. Controls: MiLoRA (2406.09044, 2024), which takes the minor
components of the weight, and random orthonormal directions with PiSSA's singular values. Predicted for them, before they were run: (d) at
LoRA's rate PiSSA's loss around step 20 is below each one's in at least four of five seeds; (e) MiLoRA ends within 1 % of LoRA at own rates.
Measured: (a) lower in 5 of 5 seeds, by 5.7 %; (b) not told apart, -0.1 % [-2.2, +1.9]; (c) 3.16e-3 against 1e-2. (d) below MiLoRA's in 5
of 5, by 4.5 %; not below that of random directions, which is lower in 5 of 5, PiSSA's being 7.5 % above it: the principal directions are
not what PiSSA is faster by here. (e) not told apart, -0.7 % [-1.6, +0.3]. Random directions end 6.1 % below LoRA [4.4, 7.9]. On the first
training of T64, of perplexity 111: (a) by 2.1 %, (b) 4.3 % worse [2.8, 5.8], (c) as here; the controls were not run.
"""

from pathlib import Path
from runpy import run_path

from peftjax.peft import lora
from peftjax.study.checks.trials import arm, trials_config


def get_config(variant: str = ""):
    """The config; `variant` is "", or "runlocal" with few steps."""
    config, shared = trials_config("pc8"), run_path(str(Path(__file__).with_name("pc9.py")))
    shared["on_commands"](config)
    inits = {"PiSSA": "pissa", "MiLoRA": "milora", "random directions": "pissa_random"}
    config.arms = {"LoRA": arm(lora(rank=8, alpha=16))} | {name: arm(lora(rank=8, alpha=16, init=init)) for name, init in inits.items()}
    config.centre, config.at_rate_of = 1e-2, "LoRA"
    config.starts = {"PiSSA": -1, "random directions": -1}
    shared["in_variant"](config, variant)
    return config
