"""Questions about the products of a fictional bank, answered from the text above them, with LoRA on all linear layers.

    python scripts/train.py --config configs/bank_lora.py

Base and method as in configs/quickstart.py. Data: the knowledge base of tau2-bench's Rho-Bank (PyPI inspect-evals) as open-book questions:
a section of a document, a question, the value that answers it; train, validation and test differ in whole products. Metrics: the value up
to how it is written (value_match), and word for word. The kinds "section" and "fact_closed" of the set teach the facts themselves.
"""

from peftjax.peft import lora
from peftjax.train.config import default_config, methods, with_variant


def get_config(variant: str = ""):
    """The config; `variant` is "" or "runlocal"."""
    config = default_config()
    config.peft = methods(lora(rank=16, targets="all-linear"))
    config.data.name = "rhobank"
    config.data.options = {"kinds": ("fact_open",)}
    config.data.fractions = {"train": 0.7, "validation": 0.1, "test": 0.2}  # a tenth of 58 products may be two rows
    config.data.length = 256
    config.train.steps = 120
    config.optimizer.learning_rate = 1e-3
    config.eval.metrics = ("value_match", "exact_match")
    config.eval.max_new = 16
    return with_variant(config, variant)
