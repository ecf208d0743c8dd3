"""The quickstart's LoRA over learning rates and ranks: which rate does each rank want, and does its best lie inside of what was tried?

    python scripts/sweep.py --config configs/sweeps/lora_rates.py --launcher population

The changes to configs/quickstart.py are: 60 steps instead of 430; points are compared by their loss on validation rows, and nothing is
generated. `:runlocal` is four steps a point.
"""

from pathlib import Path

from peftjax.train.config import from_file
from peftjax.train.points import choice, log_uniform, product


def get_config(variant: str = ""):
    """The config that the points are set on; `variant` is "" or "runlocal"."""
    config = from_file(Path(__file__).parents[1] / "quickstart.py", variant)
    if not variant:
        config.train.steps = 60
    config.eval.at_end = ("validation",)
    config.eval.generate = False
    config.eval.before = False
    config.eval.general.name = ""
    return config


def sweep():
    """Four rates by two ranks."""
    return product({"peft[0].rank": (4, 16), "optimizer.learning_rate": (3e-4, 1e-3, 3e-3, 1e-2)})


def search():
    """What `--trials` draws from: rates between those of the sweep and beyond, three ranks."""
    return {"optimizer.learning_rate": log_uniform(1e-4, 3e-2), "peft[0].rank": choice(4, 8, 16)}
