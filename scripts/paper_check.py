"""Checks a claim of a paper on this machine: measures, judges by the rule that was written down before, and reports.

    python scripts/paper_check.py --config configs/studies/pc1.py [--workdir runs/pc1]

The same command goes on after a kill. The configs say what is claimed, by whom, and what was measured here.
"""

from absl import app, flags, logging
from ml_collections import config_flags

from peftjax.huge_pages import restart_with_huge_pages

CONFIG = config_flags.DEFINE_config_file("config", None, "Path of a config file, `configs/studies/pc1.py` or `...:variant`.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the check; default runs/<check>-<hash of its fields>.")


def main(_):
    from peftjax.study.checks.conduct import conduct, default_folder

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the checkpoint library tells every file it touches
    print(conduct(CONFIG.value, WORKDIR.value or default_folder(CONFIG.value)))


if __name__ == "__main__":
    restart_with_huge_pages()
    flags.mark_flag_as_required("config")
    app.run(main)
