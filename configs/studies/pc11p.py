"""PC11, statistical part: does LoRA on a base in 4 bits end where it does on the dense base?

    python scripts/paper_check.py --config configs/studies/pc11p.py

Paper: QLoRA (2305.14314, 2023). Set-up: T64, whose weights were never quantised, data and steps of PC9 (configs/studies/pc9.py), LoRA of
rank 8 on all linear layers of the dense base, of NF4 with double quantisation and of symmetric int4, both in blocks of 64; rate tuned for
each, five seeds. Predicted: NF4 within 2 % of the dense base, int4 no nearer to it than NF4.
Measured (63 test items in 48 groups, 95 %): NF4 +0.47 % [-2.36, +3.29] and int4 -1.11 % [-3.53, +1.31] against the dense base's 2.83 nats a
token, int4 -1.58 % [-4.30, +1.15] against NF4: none told apart, and none shown to be a tie. The last was judged by means alone at first,
which int4's lower one does not meet. Measured on two trainings of T64, with the same numbers.
"""

from pathlib import Path
from runpy import run_path

from peftjax.peft import lora
from peftjax.study.checks.trials import arm, trials_config


def get_config(variant: str = ""):
    """The config; `variant` is "", or "runlocal" with few steps."""
    config, shared = trials_config("pc11p"), run_path(str(Path(__file__).with_name("pc9.py")))
    shared["on_commands"](config)
    method, symmetric = lora(rank=8, alpha=16), (("all-linear", {"kind": "affine4", "block": 64, "symmetric": True}),)
    config.arms = {
        "dense base": arm(method), "NF4 base": arm(method, fields={"base.quantise": "nf4"}),
        "int4 base": arm(method, fields={"base.quantise": symmetric}),
    }
    config.centre = 1e-2
    shared["in_variant"](config, variant)
    return config
