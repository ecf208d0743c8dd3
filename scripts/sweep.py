"""Trains every point that a config file lists in `sweep()`, or searches what it says in `search()`, and compares them on validation rows.

    python scripts/sweep.py --config configs/sweeps/lora_rates.py [--launcher population] [--config.train.steps=50] [--folder runs/mine]
    python scripts/sweep.py --config configs/sweeps/lora_rates.py --trials 24 --batch 8 --rungs 15,30           # by Optuna

The same command starts a sweep, goes on with it after a kill, tries what failed again, or finds it done.
"""

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Path of a config file with `def sweep()` or `def search()`.")
FOLDER = flags.DEFINE_string("folder", None, "Folder of the sweep; default runs/sweeps/<config>-<hash of config and points>.")
LAUNCHER = flags.DEFINE_enum("launcher", "population", ["local", "population", "slurm", "ray", "sky"], "Who trains.")
PROCESSES = flags.DEFINE_integer("processes", 1, "Jobs at a time on this machine.", lower_bound=1)
PACK = flags.DEFINE_boolean("pack", None, "Whether points that can share a program are one job; default where the launcher is population.")
RESOURCES = flags.DEFINE_list("resources", [], "What a job takes, as the launcher has it: gpus_per_node=1,timeout_min=60 of slurm, "
                              "num_gpus=1 of ray, accelerators=tpu-v5e-8,use_spot=true of sky.")
STORE = flags.DEFINE_string("store", "", "Of sky: the bucket for the work directories, gs://mine/rates.")
SUBMIT = flags.DEFINE_boolean("submit", True, "Of sky: whether the tasks are handed in, or only written.")
RUNGS = flags.DEFINE_list("rungs", [], "Of population: steps at which the worse half stops.")
METRIC = flags.DEFINE_string("metric", "loss", "By which points are compared, on validation rows.")
TRIALS = flags.DEFINE_integer("trials", 0, "Of a search: how many points in all.", lower_bound=0)
BATCH = flags.DEFINE_integer("batch", 8, "Of a search: how many points at once.", lower_bound=1)


def main(_):
    from peftjax.train.points import points_of, ranges_of
    from peftjax.train.sweep.comparison import write_comparison
    from peftjax.train.sweep.folder import default_folder
    from peftjax.train.sweep.job import alone
    from peftjax.train.sweep.launch import launch
    from peftjax.train.sweep.launchers import as_resources, launcher
    from peftjax.train.sweep.score import require_metric
    from peftjax.train.sweep.search import search
    from peftjax.train.sweep.together import packed

    logging.set_verbosity(logging.WARNING)
    require_metric(METRIC.value)
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    points = [] if TRIALS.value else points_of(name)
    folder = FOLDER.value or default_folder(name, CONFIG.value, points)
    trains = launcher(LAUNCHER.value, folder, processes=PROCESSES.value, resources=as_resources(RESOURCES.value), store=STORE.value,
                      submit=SUBMIT.value, rungs=[int(step) for step in RUNGS.value])
    pack = packed if (LAUNCHER.value == "population" if PACK.value is None else PACK.value) else alone
    outcomes = []  # of a search: what failed is a finding like others
    if TRIALS.value:
        search(CONFIG.value, ranges_of(name), folder, trains, trials=TRIALS.value, batch=BATCH.value, metric=METRIC.value, pack=pack)
    else:
        outcomes = launch(CONFIG.value, points, folder, trains, pack=pack)
    comparison = write_comparison(folder, METRIC.value)
    print(comparison.read_text())
    print(f"comparison: {comparison}")
    if any(outcome.status == "failed" for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
