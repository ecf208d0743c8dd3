"""Smart-home commands in three languages at once: a LoRA for each language, by the records' field, and one adapter for the task they share.

    python scripts/train.py --config configs/languages.py
    python scripts/generate.py --run runs/languages-<hash> --row lang=de --prompt "mach das Licht aus"

Base as in configs/quickstart.py. Data: Home Assistant's sentence templates in English, German and French; train, validation and test differ
in whole templates. Methods: LoRA (2106.09685, 2021) of rank 8 on queries and values for each language, trained on its rows alone, and a
Pfeiffer adapter (2005.00247, 2020) trained on all of them. A line of a batch holds rows of one language, a batch lines of all.
"""

from peftjax.peft import lora, pfeiffer
from peftjax.train.config import default_config, methods, with_variant

LANGUAGES = ("en", "de", "fr")


def get_config(variant: str = ""):
    """The config; `variant` is "" or "runlocal"."""
    config = default_config()
    config.peft = methods(
        *(lora(rank=8, targets=("q_proj", "v_proj"), name=language) for language in LANGUAGES), pfeiffer(size=48, name="task")
    )
    config.compose = {"stack": [{"batch_split": list(LANGUAGES), "at": "lang"}, "task"]}
    config.data.name = "ha_intents"
    config.data.options = {"languages": LANGUAGES}
    config.data.prompt = "Command: {prompt}\nJSON:"
    config.data.fractions = {"train": 0.8, "validation": 0.05, "test": 0.15}
    config.data.length = 128
    config.train.steps, config.train.batch_size = 400, 4
    config.optimizer.learning_rate = 1e-3
    config.eval.metrics = ("exact_match", "json_field_f1")
    config.eval.max_new = 48
    return with_variant(config, variant)
