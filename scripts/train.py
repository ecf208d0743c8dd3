"""Fine-tunes a frozen base with the methods of a config.

    python scripts/train.py --config configs/quickstart.py [--config.train.steps=50] [--workdir runs/mine]

The same command starts a run, resumes it after a kill, or finds it done.
"""

import time

STARTED = time.time()  # before the heavy imports: start-up is measured from here

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from peftjax.huge_pages import restart_with_huge_pages  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", None, "Path of a config file, `configs/x.py` or `configs/x.py:variant`.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config>-<hash of its fields>.")


def main(_):
    from peftjax.train.loop import run

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the checkpoint library tells every file it touches
    run(CONFIG.value, WORKDIR.value, name=config_flags.get_config_filename(flags.FLAGS["config"]), started=STARTED)


if __name__ == "__main__":
    restart_with_huge_pages()
    flags.mark_flag_as_required("config")
    app.run(main)
