"""AdapterFusion (2005.00247, 2021): attention over adapters that were trained before and are held as they are.

    python scripts/train.py --config configs/fusion.py '--config.adapters[0].path=adapters/en' '--config.adapters[1].path=adapters/de' \\
        '--config.adapters[2].path=adapters/task'

The adapters are directories of ours (scripts/export.py), HF PEFT's or AdapterHub's, of bottlenecks, LoRAs or both; "en", "de" and "task"
are their names in the run. Only the fusion is trained; with `train=True` in its place an adapter is trained on. Base as in
configs/quickstart.py; data: Home Assistant's commands in English and German to JSON, whole templates held out.
"""

from peftjax.peft import fusion
from peftjax.train.config import default_config, loaded, methods, with_variant

NAMES = ("en", "de", "task")


def get_config(variant: str = ""):
    """The config; `variant` is "" or "runlocal"."""
    config = default_config()
    config.adapters = [loaded(f"adapters/{name}", name, train=False) for name in NAMES]
    config.peft = methods(fusion(of=NAMES))
    config.compose = {"fuse": list(NAMES)}
    config.data.name = "ha_intents"
    config.data.options = {"languages": ("en", "de")}
    config.data.prompt = "Command: {prompt}\nJSON:"
    config.data.fractions = {"train": 0.8, "validation": 0.05, "test": 0.15}
    config.data.length = 128
    config.train.steps, config.train.batch_size = 300, 2
    config.optimizer.learning_rate = 1e-3
    config.eval.metrics = ("exact_match", "json_field_f1")
    config.eval.max_new = 48
    return with_variant(config, variant)
