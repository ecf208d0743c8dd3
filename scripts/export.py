"""Writes a run's adapter, or an adapter from a directory, in the forms that other tools load.

    python scripts/export.py --run runs/quickstart-1a2b3c4d --to exported                       every form that can hold it
    python scripts/export.py --run runs/quickstart-1a2b3c4d --to exported --forms peft,merged --dtype bfloat16
    python scripts/export.py --base /models/mine --adapter my-lora --to exported --forms gguf   from HF PEFT to llama.cpp
    python scripts/export.py --run runs/quickstart_qlora-1a2b3c4d --to exported --forms quantised --max_kl 0.02

The last folds the adapter into the weights of a quantised base, which stay quantised, measures what rounding costs on a sample of text, and
writes nothing above the budget. What it writes is of our own form, which `--base` takes: no other tool's holds such weights.

At the end: which servers take the adapter, and what they would ignore.
"""

from absl import app, flags

RUN = flags.DEFINE_string("run", None, "Work directory of a run.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run; default the newest.")
BASE = flags.DEFINE_string("base", None, "Base of --adapter; default SmolLM2-135M-Instruct.")
ADAPTER = flags.DEFINE_string("adapter", None, "Adapter directory: of peftjax, HF PEFT or AdapterHub.")
OTHER_BASE = flags.DEFINE_bool("other_base", False, "Take the adapter although it was made for another base or tokenizer.")
NAME = flags.DEFINE_string("name", None, "Name of the adapter, where a run has several.")
TO = flags.DEFINE_string("to", None, "Folder for the exports.", required=True)
FORMS = flags.DEFINE_list("forms", [], "Some of peftjax, peft, adapterhub, merged, gguf, quantised; default all but the last.")
MAX_KL = flags.DEFINE_float("max_kl", 0.05, "Of quantised: KL from the unmerged model at most, nats a token on average.", lower_bound=0.0)
MAX_LOGIT = flags.DEFINE_float("max_logit", None, "Of quantised: change of any logit at most; default no bound.", lower_bound=0.0)
SAMPLE = flags.DEFINE_string("sample", "general", "Of quantised: data set or JSONL file that these are measured on.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "Of the tensors written.")


def main(_):
    from peftjax.peft.certificate import Budget
    from peftjax.train.adapters import ready
    from peftjax.train.export import export
    from peftjax.train.startup import log_warnings_only

    log_warnings_only()
    if RUN.value is None and ADAPTER.value is None:
        raise app.UsageError("name what to export: --run, or --adapter with --base")
    found = ready(RUN.value, BASE.value, ADAPTER.value, step=STEP.value, other_base=OTHER_BASE.value)
    export(found, TO.value, FORMS.value, name=NAME.value, dtype=DTYPE.value,
           budget=Budget(MAX_KL.value, MAX_LOGIT.value), sample=SAMPLE.value)


if __name__ == "__main__":
    app.run(main)
