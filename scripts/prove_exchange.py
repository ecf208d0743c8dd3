"""Exports every method in every form and has each form's own library load it: are the logits ours?

    python -m venv /tmp/peft && /tmp/peft/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy
    python -m venv /tmp/adapters && /tmp/adapters/bin/pip install torch==2.13.0 adapters==1.3.0 safetensors numpy
    python scripts/prove_exchange.py --peft_python /tmp/peft/bin/python --adapters_python /tmp/adapters/bin/python

    python scripts/prove_exchange.py ... --bases tests/golden/bert --cases "DoRA|IA3"             some of it
    python scripts/prove_exchange.py ... --folder proof        kept there: stopped, it goes on, and several may each do some bases at once

On the tiny bases of tests/golden, or those that --bases names. Exits with 1 if a logit differs by more than 1e-4, or if a library does not
take an export.
"""

import contextlib
import os
import re
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
FOLDER = flags.DEFINE_string("folder", None, "Where exports and logits are kept; what is answered there is not done again.")
ONLY = flags.DEFINE_string("cases", "", "Methods whose names match this regular expression; default all.")


def main(_):
    import jax

    from peftjax.train.proof import ANSWER, CASES, TOLERANCE, as_table, compare_jobs, in_words, write_jobs
    from peftjax.train.startup import log_warnings_only, use_compilation_cache

    cases = [case for case in CASES if re.search(ONLY.value, case.name)]
    if not cases:
        raise app.UsageError(f"no method's name matches {ONLY.value!r}; they are {', '.join(dict.fromkeys(case.name for case in CASES))}")
    log_warnings_only()
    use_compilation_cache()
    jax.config.update("jax_disable_most_optimizations", True)  # compiling hundreds of tiny models is most of the time

    with contextlib.nullcontext(FOLDER.value) if FOLDER.value else tempfile.TemporaryDirectory() as folder:
        name = f"jobs-{os.getpid()}.json"
        jobs = write_jobs(folder, [Path(base) for base in BASES.value], cases, name=name)
        for python, form in ((PEFT.value, "peft"), (PEFT.value, "merged"), (ADAPTERS.value, "adapterhub")):
            if all(Path(job["at"], ANSWER).is_file() for job in jobs if job["form"] == form):
                continue
            answer = str(Path(__file__).parent / "peers" / "logits.py")
            subprocess.run([python, answer, f"{folder}/{name}", form], check=True)
        rows = list(compare_jobs(jobs))
    print(as_table(rows))
    print(in_words(rows))
    agree = sum(difference <= TOLERANCE for _, difference in rows)
    print(f"{agree} of {len(rows)} within {TOLERANCE}")
    sys.exit(agree < len(rows))


if __name__ == "__main__":
    app.run(main)
