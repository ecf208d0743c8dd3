"""Merges adapters of one base into one, in the space of what they change, and says what is lost; or turns any mergeable one into LoRA.

    python scripts/merge.py --adapters runs/tone-1a2b3c4d,runs/task-5e6f7a8b --weights 0.7,0.3 --to merged        Σ w ΔW, exact
    python scripts/merge.py --adapters tone,task --method ties --density 0.2 --rank 16 --to merged                nearest of rank 16
    python scripts/merge.py --adapters my-dora --to_lora --tolerance 0.05 --to as-lora                            smallest ranks within 5 %

What is written is of our own form: --adapter of generate.py, evaluate.py and export.py takes it, the last to write it for other tools.
"""

from absl import app, flags

ADAPTERS = flags.DEFINE_list("adapters", None, "Work directories of runs, or adapter directories in any form.", required=True)
WEIGHTS = flags.DEFINE_list("weights", None, "One for each; default equal shares of 1, but 1 each for ties and dare --elect, which take "
                                              "a mean themselves.")
METHOD = flags.DEFINE_string("method", "linear", "linear, cat, svd (linear, to a rank), slerp, prune, ties or dare.")
DENSITY = flags.DEFINE_float("density", None, "Of prune, ties, dare: fraction of the entries that is kept.")
ELECTION = flags.DEFINE_string("election", None, "Of ties and dare: sign of the sum of values (total) or of signs (frequency).")
ELECT = flags.DEFINE_bool("elect", None, "Of dare: mean of those with the elected sign, instead of the sum.")
SEED = flags.DEFINE_integer("seed", None, "Of dare.")
RANK = flags.DEFINE_integer("rank", None, "Of the result at most: the nearest LoRA. Default: what loses nothing.", lower_bound=1)
TOLERANCE = flags.DEFINE_float("tolerance", None, "Instead of --rank: relative error of any kernel at most.", lower_bound=0.0)
TO_LORA = flags.DEFINE_bool("to_lora", False, "LoRA also where a dense update would be smaller.")
BASE = flags.DEFINE_string("base", None, "Base of adapter directories; default that of the first run, or SmolLM2-135M-Instruct.")
OTHER_BASE = flags.DEFINE_bool("other_base", False, "Take adapters although they were made for another base or tokenizer.")
TO = flags.DEFINE_string("to", None, "Folder of the result.", required=True)


def main(_):
    from peftjax.train.merging import found_at, merge_adapters, way_named
    from peftjax.train.startup import log_warnings_only

    log_warnings_only()
    if METHOD.value == "svd" and RANK.value is None and TOLERANCE.value is None:
        raise app.UsageError("svd needs --rank or --tolerance")
    way = way_named("linear" if METHOD.value == "svd" else METHOD.value, density=DENSITY.value, election=ELECTION.value,
                    elect=ELECT.value, seed=SEED.value)
    weights = None if WEIGHTS.value is None else [float(weight) for weight in WEIGHTS.value]
    found = found_at(ADAPTERS.value, BASE.value, OTHER_BASE.value)
    merge_adapters(found, weights, way, TO.value, rank=RANK.value, tolerance=TOLERANCE.value, as_lora=TO_LORA.value)


if __name__ == "__main__":
    app.run(main)
