"""A support desk in one tree: a LoRA for the tone under an adapter for the language under an adapter for the task.

    python scripts/train.py --config configs/support_desk.py

Base as in configs/quickstart.py. Data: user-interface texts from English into German (Django's messages; PyPI django, babel); train,
validation and test differ in whole texts. Methods, trained together and stored apart, so that each can be exchanged by itself: LoRA
(2106.09685, 2021) of rank 8 on queries and values, a language adapter of MAD-X (2005.00052, 2020) and a Pfeiffer adapter (2005.00247,
2020). They act in the order that `config.compose` says; {"stack": ["tone", {"average": ["de", "fr"]}, "task"]} would be another desk's.
Measured on 2 CPU cores, one seed, rates not tuned, 4,397,832 trained parameters: chrF 39.2 % [30.7, 48.3] on 114 held-out texts (the base:
9.5 %), exact match 10.5 % [6.1, 17.5] (0.0 %), loss 1.83 nats a response token (4.98), forgetting +2.35 nats; peak memory 1.88 GB.
"""

from peftjax.peft import lora, pfeiffer, pfeiffer_inv
from peftjax.train.config import default_config, methods, with_variant


def get_config(variant: str = ""):
    """The config; `variant` is "" or "runlocal"."""
    config = default_config()
    config.peft = methods(
        lora(rank=8, targets=("q_proj", "v_proj"), name="tone"), pfeiffer_inv(size=72, name="language"), pfeiffer(size=36, name="task")
    )
    config.compose = {"stack": ["tone", "language", "task"]}
    config.data.name = "i18n"
    config.data.options = {"languages": ("de",), "kinds": ("message",)}
    config.data.fractions = {"train": 0.8, "validation": 0.05, "test": 0.15}
    config.data.length = 128
    config.train.steps = 300
    config.train.batch_size = 2
    config.optimizer.learning_rate = 1e-3
    config.eval.metrics = ("exact_match", "chrf")
    config.eval.max_new = 48
    return with_variant(config, variant)
