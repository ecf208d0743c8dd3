"""Fine-tunes a frozen base with the methods of a config.

    python scripts/train.py --config configs/quickstart.py [--config.train.steps=50] [--workdir runs/mine]

The same command starts a run, resumes it after a kill, or finds it done. On several hosts it is given on each, with --multihost.
"""

import time

STARTED = time.time()  # before the heavy imports: start-up is measured from here

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from peftjax.huge_pages import restart_with_huge_pages  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", None, "Path of a config file, `configs/x.py` or `configs/x.py:variant`.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config>-<hash of its fields>.")
MULTIHOST = flags.DEFINE_boolean("multihost", False, "Whether this is one of several processes of one run; JAX finds the others in the "
                                 "environment (TPU pods, Slurm, Open MPI, Kubernetes), or the flags below name them.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes the run has.", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.", lower_bound=0)


def main(_):
    from peftjax.train.loop import run
    from peftjax.train.multihost import ending_together, join

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the checkpoint library tells every file it touches
    if MULTIHOST.value:
        join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    elif COORDINATOR.value or PROCESSES.value or PROCESS.value is not None:
        raise app.UsageError("--coordinator, --processes and --process are for --multihost")
    with ending_together():
        run(CONFIG.value, WORKDIR.value, name=config_flags.get_config_filename(flags.FLAGS["config"]), started=STARTED)


if __name__ == "__main__":
    restart_with_huge_pages()
    flags.mark_flag_as_required("config")
    app.run(main)
