"""Compares methods under matched conditions, and says what may be said.

    python scripts/study.py --config configs/studies/lora_vs_adapter.py
    python scripts/study.py --config configs/studies/lora_vs_adapter.py:tiny --workdir runs/tiny-study
    python scripts/study.py --workdir runs/study-lora_vs_adapter --report_only
    python scripts/study.py --config configs/studies/lora_vs_adapter.py --costs_only     # at a quiet hour, before the rest

The same command goes on where it was stopped. The report is report.md and report.html in the work directory.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging
from ml_collections import config_flags

from peftjax.study.conduct import conduct, time_costs
from peftjax.study.config import slug
from peftjax.study.report import write_report

_CONFIG = config_flags.DEFINE_config_file("config", None, "The study's Python config; fields are overridden by --config.field=value.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The study's folder; default runs/study-<name of the config>.")
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Write the report of the stored tables again, without any run.")
_COSTS_ONLY = flags.DEFINE_bool("costs_only", False, "Time what methods cost, and nothing else; the study finds it there.")


def main(argv):
    """Conducts the study."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    name = config_flags.get_config_filename(flags.FLAGS["config"]) if _CONFIG.value is not None else None
    if _WORKDIR.value is None and name is None:
        raise app.UsageError("name a --config, or with --report_only a --workdir")
    file, _, variant = str(name).partition(":")
    workdir = _WORKDIR.value or Path("runs") / slug("-".join(part for part in ("study", Path(file).stem, variant) if part))
    if _REPORT_ONLY.value:
        print(f"report: {write_report(workdir)}")
    elif name is None:
        raise app.UsageError("name a --config; a --workdir alone is enough with --report_only")
    elif _COSTS_ONLY.value:
        time_costs(_CONFIG.value, workdir)
    else:
        conduct(_CONFIG.value, workdir)


if __name__ == "__main__":
    try:
        app.run(main)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"study.py: {error}")
