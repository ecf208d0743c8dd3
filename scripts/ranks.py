"""Ranks of a LoRA under a budget, from statistics of a config's base on its first training batches; a config file with them.

    python scripts/ranks.py --config configs/quickstart.py --parameters 2442240                              a table of ranks by kernel
    python scripts/ranks.py --config configs/quickstart.py --nbytes 5000000 --by inputs --to configs/mine.py     and a config to train
"""

from absl import app, flags
from ml_collections import config_flags

from peftjax.huge_pages import restart_with_huge_pages

CONFIG = config_flags.DEFINE_config_file("config", None, "Path of a config file: its base and its data are measured.")
PARAMETERS = flags.DEFINE_integer("parameters", None, "Numbers in A and B at most.", lower_bound=1)
NBYTES = flags.DEFINE_integer("nbytes", None, "Or their bytes in float32.", lower_bound=1)
BY = flags.DEFINE_string("by", "gradient", "gradient: of the kernels; inputs: the variance of what they read.")
TARGETS = flags.DEFINE_list("targets", ["all-linear"], "Kernels that may get a rank, as of `lora`.")
BATCHES = flags.DEFINE_integer("batches", 4, "Batches that are measured.", lower_bound=1)
MAX_RANK = flags.DEFINE_integer("max_rank", 64, "Of any kernel of a layer.", lower_bound=1)
CUT = flags.DEFINE_bool("cut", False, "A kernel may be left out on some layers.")
TO = flags.DEFINE_string("to", None, "Config file to write.")


def main(_):
    from peftjax.train.budget import as_table, choose, write_config
    from peftjax.train.startup import log_warnings_only, use_compilation_cache

    log_warnings_only()
    use_compilation_cache()
    chosen = choose(CONFIG.value, parameters=PARAMETERS.value, nbytes=NBYTES.value, by=BY.value, targets=tuple(TARGETS.value),
                    batches=BATCHES.value, max_rank=MAX_RANK.value, cut=CUT.value)
    print(as_table(chosen))
    if TO.value is not None:
        write_config(TO.value, config_flags.get_config_filename(flags.FLAGS["config"]), chosen)
        print(f"python scripts/train.py --config {TO.value}")


if __name__ == "__main__":
    restart_with_huge_pages()
    flags.mark_flag_as_required("config")
    app.run(main)
