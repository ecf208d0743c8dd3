"""The config that a run stored in its folder, to run it again or go on with it.

    python scripts/train.py --config configs/stored.py:runs/x/config.json [--workdir runs/x]

Fields are overridden as with every config.
"""

from peftjax.train.stored_config import stored_config


def get_config(path: str = ""):
    """The config in the file `path`."""
    if not path:
        raise ValueError("name the stored config: --config configs/stored.py:runs/x/config.json")
    return stored_config(path)
