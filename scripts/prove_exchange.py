"""Exports every method in every form and has each form's own library load it: are the logits ours?

    python -m venv /tmp/peft && /tmp/peft/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy
    python -m venv /tmp/adapters && /tmp/adapters/bin/pip install torch==2.13.0 adapters==1.3.0 safetensors numpy
    python scripts/prove_exchange.py --peft_python /tmp/peft/bin/python --adapters_python /tmp/adapters/bin/python

On the tiny bases of tests/golden, or those that --bases names. Exits with 1 if a logit differs by more than 1e-4.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
NAMES = ("llama", "llama_tied", "llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "bert", "roberta")
PEFT = flags.DEFINE_string("peft_python", None, "Python of an environment with HF PEFT.", required=True)
ADAPTERS = flags.DEFINE_string("adapters_python", None, "Python of an environment with AdapterHub's `adapters`.", required=True)
BASES = flags.DEFINE_list("bases", [str(GOLDEN / name) for name in NAMES], "Base directories in Hugging Face layout.")


def main(_):
    from peftjax.train.proof import TOLERANCE, as_table, compare_jobs, write_jobs

    with tempfile.TemporaryDirectory() as folder:
        jobs = write_jobs(folder, [Path(base) for base in BASES.value])
        for python, form in ((PEFT.value, "peft"), (PEFT.value, "merged"), (ADAPTERS.value, "adapterhub")):
            answer = str(Path(__file__).parent / "peers" / "logits.py")
            subprocess.run([python, answer, f"{folder}/jobs.json", form], check=True)
        rows = list(compare_jobs(jobs))
    print(as_table(rows))
    wrong = [(job, difference) for job, difference in rows if difference > TOLERANCE]
    print(f"{len(rows) - len(wrong)} of {len(rows)} within {TOLERANCE}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    app.run(main)
