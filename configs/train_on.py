"""Training on from an adapter that is there already: one of HF PEFT, of AdapterHub, or exported from a run.

    python scripts/train.py --config configs/train_on.py --config.adapter.path=my-lora --config.base.uri=/models/mine \\
        --config.data.name=mine.jsonl

Base and data are yours, as in configs/own.py. The changes from there are: no method of its own, as methods and first values come from the
adapter's directory; a third of the learning rate, as it has learnt something already. The result goes back with scripts/export.py.
"""

from pathlib import Path

from peftjax.train.config import from_file


def get_config(variant: str = ""):
    """The config; `variant` is "" or "runlocal"."""
    config = from_file(Path(__file__).with_name("own.py"), variant)
    config.peft = []
    config.optimizer.learning_rate = config.optimizer.learning_rate / 3
    return config
