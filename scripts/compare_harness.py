"""Asks a base here and its export under the evaluation harness's Hugging Face backend the same, and prints how far they are apart.

    pip install -e '.[evals]' torch transformers && python scripts/compare_harness.py
"""

import tempfile

from absl import app, flags

BASE = flags.DEFINE_string("base", None, "Base to compare; default SmolLM2-135M-Instruct.")
ROWS = flags.DEFINE_integer("rows", 24, "Questions, texts and prompts of each task.", lower_bound=1)
MAX_LENGTH = flags.DEFINE_integer("max_length", 256, "Tokens that both may see; short, so that windows occur.", lower_bound=64)
DTYPE = flags.DEFINE_enum("dtype", "float64", ["float32", "float64"], "What the Hugging Face backend computes in; here it is float32.")


def main(_):
    from peftjax.evals.harness_compare import compare
    from peftjax.interop.base import load_base
    from peftjax.train.config import SMOLLM2
    from peftjax.train.report import table

    base = load_base(BASE.value or SMOLLM2)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(base, folder, rows=ROWS.value, max_length=MAX_LENGTH.value, dtype=DTYPE.value)
    header = ["task", "answers", "largest difference (nats)", "mean size (nats)", "greedy flags unequal", "texts unequal"]
    print(table(header, [[d.task, d.items, f"{d.largest:.2e}", f"{d.mean_size:.1f}", d.flags, d.texts] for d in found]))


if __name__ == "__main__":
    app.run(main)
