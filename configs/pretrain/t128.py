"""T128: a Llama-shaped base of 1.2 million weights (width 128, 4 layers, vocabulary 3072), trained from scratch on English prose.

    python scripts/pretrain.py --config configs/pretrain/t128.py         then config.base.uri = "tiny:t128"

Text as of T64 (configs/pretrain/t64.py). Measured likewise, 800 steps, one seed: loss on held-out text from 8.05 to 4.69 nats a token
(perplexity 109, of longer tokens than T64's; 108 at its first training), on Python's language reference 3.07 less than untrained; 4.7 MB.
"""

from pathlib import Path

from peftjax.train.config import from_file


def get_config(variant: str = ""):
    """The config, see `peftjax.train.pretrain`; `variant` is "" or "runlocal", four steps to see that everything works."""
    config = from_file(Path(__file__).with_name("t64.py"), variant)
    config.name = "t128"
    config.decoder.vocab_size, config.decoder.width, config.decoder.head_size, config.decoder.ff = 3072, 128, 32, 384
    if not variant:
        config.run.train.steps = 800
    config.run.optimizer.learning_rate = 4e-3
    return config
