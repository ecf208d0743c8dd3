"""Trains a tiny base from scratch, once; afterwards any config may name it: `config.base.uri = "tiny:t128"`.

    python scripts/pretrain.py --config configs/pretrain/t128.py [--workdir runs/mine]

The same command goes on after a kill, and writes the base again where it is done.
"""

import time

STARTED = time.time()  # before the heavy imports

from absl import app, flags, logging
from ml_collections import config_flags

from peftjax.huge_pages import restart_with_huge_pages

CONFIG = config_flags.DEFINE_config_file("config", None, "Path of a config file, `configs/pretrain/t128.py`.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training; default runs/pretrain-<name>.")


def main(_):
    from peftjax.train.pretrain import pretrain

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the checkpoint library tells every file it touches
    pretrain(CONFIG.value, WORKDIR.value or f"runs/pretrain-{CONFIG.value.name}", started=STARTED)


if __name__ == "__main__":
    restart_with_huge_pages()
    flags.mark_flag_as_required("config")
    app.run(main)
