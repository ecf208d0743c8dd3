"""The quickstart's LoRA over learning rates and ranks: which rate does each rank want, and does its best lie inside of what was tried?

    python scripts/sweep.py --config configs/sweeps/lora_rates.py --launcher population

The changes to configs/quickstart.py are: 60 steps instead of 430; points are compared by their loss on validation rows, and nothing is
generated. `:runlocal` is four steps a point.
"""

from pathlib import Path

from peftjax.train.config import from_file
from peftjax.train.points import product


def get_config(variant: str = ""):
    """The config that the points are set on; `variant` is "" or "runlocal"."""
    config = from_file(Path(__file__).parents[1] / "quickstart.py", variant)
    if not variant:
        config.train.steps = 60
    config.eval.every = config.train.steps
    config.eval.generate = False
    config.eval.before = False
    config.eval.general.name = ""
    return config


def sweep():
    """Four rates by two ranks."""
    return product({"peft[0].rank": (4, 16), "optimizer.learning_rate": (3e-4, 1e-3, 3e-3, 1e-2)})
