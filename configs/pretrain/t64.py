"""T64: a Llama-shaped base of 0.33 million weights (width 64, 4 layers, vocabulary 2048), trained from scratch on English prose.

    python scripts/pretrain.py --config configs/pretrain/t64.py          then config.base.uri = "tiny:t64"

Text: the set "prose" (Django's documentation, docstrings of Python, and the words of the built-in tasks without their answers, of training
groups alone). Measured on 2 CPU cores that other work shared, 700 steps of 8 x 320 tokens, one seed: loss on held-out text from 7.63 to
4.71 nats a token (perplexity 111), on Python's language reference 2.70 less than untrained; 2,900 tokens/s, 1.4 MB.
"""

from peftjax.train.config import with_variant
from peftjax.train.pretrain import pretrain_config


def get_config(variant: str = ""):
    """The config, see `peftjax.train.pretrain`; `variant` is "" or "runlocal", four steps to see that everything works."""
    config = pretrain_config()
    config.name = "t64"
    run = config.run
    run.data.length = 320
    run.train.steps, run.train.batch_size = 700, 8
    run.optimizer.learning_rate, run.optimizer.warmup, run.optimizer.weight_decay = 6e-3, 50, 0.1
    run.optimizer.b2, run.optimizer.final_fraction = 0.95, 0.05
    run.eval.every, run.checkpoint.every = 350, 50
    run.log.tensorboard = False
    with_variant(run, variant)
    return config
