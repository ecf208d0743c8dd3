"""Makes golden training losses: 20 steps of AdamW on tests/golden/llama by HF PEFT and by AdapterHub, each in an environment of its own.

    python -m venv /tmp/peft && /tmp/peft/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy
    /tmp/peft/bin/python tests/golden/make_training_golden.py peft_steps
    python -m venv /tmp/adapters && /tmp/adapters/bin/pip install torch==2.13.0 adapters==1.3.0 safetensors numpy
    /tmp/adapters/bin/python tests/golden/make_training_golden.py adapterhub_steps

    lora, rslora, dora            PEFT: rank 4, alpha 8, every linear of the layers
    houlsby, pfeiffer, parallel   AdapterHub: double_seq_bn, seq_bn, par_bn with reduction factor 8

Each becomes tests/golden/training/<method>/ with initial/, the adapter before the first step in the library's own format, and losses.npz:

    batches [20, 4, 16]           token ids, one batch a step, the same for every method
    learning_rate, weight_decay [runs], betas [2], eps
    losses [runs, 20] float64     before step i; mean next-token cross-entropy over all 4 x 15 predicted positions

What trains, and how, is in scripts/peers: all trainable tensors decay, biases of bottlenecks included. The losses of the first two runs
are one part in a million apart; the third is where decay shows (1e-3 relative, and 1e-4 had biases not decayed).
"""

import importlib
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "scripts" / "peers"))

import training  # noqa: E402


def main():
    steps = dict(
        batches=np.random.default_rng(0).integers(0, 97, (20, 4, 16), dtype=np.int32),
        learning_rate=np.array([1e-3, 1e-3, 1e-2]),
        weight_decay=np.array([0.01, 0.0, 0.3]),
        betas=np.array([0.9, 0.999]),
        eps=np.array(1e-8),
    )
    training.run(importlib.import_module(sys.argv[1]).methods(), HERE / "llama", steps, HERE / "training")


if __name__ == "__main__":
    main()
