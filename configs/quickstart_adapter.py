"""The quickstart with bottleneck adapters instead of LoRA.

    python scripts/train.py --config configs/quickstart_adapter.py

The change from configs/quickstart.py: Pfeiffer adapters (2005.00247, 2020) of size 140 after each MLP, 4,859,880 trainable parameters
against LoRA's 4,884,480. Measured on 2 CPU cores, one seed, at LoRA's learning rate: exact match 60.5 % [54.4, 66.3], JSON-field F1 83.9 %,
forgetting +1.24 nats.
"""

from pathlib import Path

from peftjax.peft import pfeiffer
from peftjax.train.config import from_file, methods


def get_config(variant: str = ""):
    """The config; `variant` is "" or "runlocal"."""
    config = from_file(Path(__file__).with_name("quickstart.py"), variant)
    config.peft = methods(pfeiffer(size=140))
    return config
