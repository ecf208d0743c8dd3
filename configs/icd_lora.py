"""Diagnosis wording -> one of 22 ICD-10-CM chapters, with LoRA on all linear layers.

    python scripts/train.py --config configs/icd_lora.py

Base and method as in configs/quickstart.py. Data: descriptions and inclusion terms of ICD-10-CM (PyPI simple-icd-10-cm); train, validation
and test differ in whole three-character categories. Metric: accuracy of the greedy answer.
Measured on 2 CPU cores, one seed: from 0.0 % to 75.3 % [70.7, 79.3] on 384 held-out rows (naive Bayes: 68 %), forgetting +0.53 nats; 1069 s
of training while other jobs shared the machine.
"""

from peftjax.peft import lora
from peftjax.train.config import default_config, methods, with_variant


def get_config(variant: str = ""):
    """The config; `variant` is "" or "runlocal"."""
    config = default_config()
    config.peft = methods(lora(rank=16, targets="all-linear"))
    config.data.name = "icd_chapter"
    config.data.length = 128
    config.train.steps = 260
    config.optimizer.learning_rate = 2e-3
    config.eval.metrics = ("accuracy",)
    config.eval.rows = 384
    config.eval.max_new = 8
    return with_variant(config, variant)
