"""T64: a Llama-shaped base of 0.33 million weights (width 64, 4 layers, vocabulary 2048), trained from scratch on English prose.

    python scripts/pretrain.py --config configs/pretrain/t64.py          then config.base.uri = "tiny:t64"

Text: the set "prose" (Django's documentation, docstrings of Python, and the words of the built-in tasks without their answers, of training
groups alone). Files are pinned but for those docstrings, which follow the Python that runs; no other installed package is in the text.
Measured with Python 3.11.7 on 2 CPU cores, 700 steps of 8 x 320 tokens, one seed: loss on held-out text from 7.63 to 4.76 nats a token
(perplexity 117), on Python's language reference 2.65 less than untrained; 1.4 MB.
A first training gave 4.71 (perplexity 111), and why is not known: the code of that hour, run again, has the losses of today's to the last
bit (compared over 309 steps), on cores as busy as could be, so it was neither code nor load. Its text, versions and machine are not kept.
Rounding moves the end by less: with a rate of 0.006000001 it is at 4.751 (perplexity 116).
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
