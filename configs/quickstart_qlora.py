"""The quickstart on a quantised base: QLoRA (2305.14314, 2023) on the 4-bit blocks that the file holds.

    python scripts/train.py --config configs/quickstart_qlora.py

The change from configs/quickstart.py: the base is held as its GGUF file stores it, Q4_1 in the blocks and Q8_0 in the embedding, bit for
bit what the dense base is decoded from: 97 MB instead of 538. `--config.base.quantise=embed=int8,all-linear=nf4` quantises to NF4 on load.
"""

from pathlib import Path

from peftjax.train.config import from_file


def get_config(variant: str = ""):
    """The config; `variant` is "" or "runlocal"."""
    config = from_file(Path(__file__).with_name("quickstart.py"), variant)
    config.base.quantise = "as stored"
    return config
