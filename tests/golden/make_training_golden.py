"""Makes golden training losses: 20 steps of AdamW on tests/golden/llama by HF PEFT and by AdapterHub, each in an environment of its own.

    python -m venv /tmp/peft && /tmp/peft/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy
    /tmp/peft/bin/python tests/golden/make_training_golden.py peft
    python -m venv /tmp/adapters && /tmp/adapters/bin/pip install torch==2.13.0 adapters==1.3.0 safetensors numpy
    /tmp/adapters/bin/python tests/golden/make_training_golden.py adapterhub

    lora, rslora                  PEFT: rank 4, alpha 8, every linear of the layers
    houlsby, pfeiffer, parallel   AdapterHub: double_seq_bn, seq_bn, par_bn with reduction factor 8

Each becomes tests/golden/training/<method>/ with initial/, the adapter before the first step in the library's own format, and losses.npz:

    batches [20, 4, 16]           token ids, one batch a step, the same for every method
    learning_rate, weight_decay [runs], betas [2], eps
    losses [runs, 20] float64     before step i; mean next-token cross-entropy over all 4 x 15 predicted positions

Every run starts from initial/. torch.optim.AdamW, one parameter group: *all* trainable tensors decay, biases of bottlenecks included.
No schedule, no clipping, no dropout, float32. The base is frozen. The losses of the
first two runs are one part in a million apart; the third is where decay shows (1e-3 relative, and 1e-4 had biases not decayed).
"""

import json
import logging
import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
BASE = HERE / "llama"
STEPS, BATCH, LENGTH = 20, 4, 16
BETAS, EPS = (0.9, 0.999), 1e-8
RUNS = [(1e-3, 0.01), (1e-3, 0.0), (1e-2, 0.3)]  # learning rate, weight decay
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_base() -> torch.nn.Module:
    config = transformers.AutoConfig.from_pretrained(BASE)
    config.rope_theta = json.loads((BASE / "config.json").read_text())["rope_parameters"]["rope_theta"]  # for transformers 4
    return transformers.AutoModelForCausalLM.from_pretrained(BASE, config=config, dtype=torch.float32)


def peft_methods():
    import peft

    def start(config, folder):
        model = peft.get_peft_model(load_base(), config)
        config.base_model_name_or_path = BASE.name
        model.save_pretrained(folder)
        (folder / "README.md").unlink()

    def load(folder):
        return peft.PeftModel.from_pretrained(load_base(), folder, is_trainable=True)

    config = dict(r=4, lora_alpha=8, target_modules=LINEARS, task_type="CAUSAL_LM")
    yield "lora", peft.LoraConfig(**config), start, load
    yield "rslora", peft.LoraConfig(**config, use_rslora=True), start, load


def adapterhub_methods():
    import adapters

    def start(config, folder):
        model = load_base()
        adapters.init(model)
        model.add_adapter("task", config=config)
        folder.mkdir(parents=True)
        model.save_adapter(folder, "task", with_head=False, use_safetensors=True)
        file = folder / "adapter_config.json"
        file.write_text(file.read_text().replace(str(BASE), BASE.name))

    def load(folder):
        model = load_base()
        adapters.init(model)
        model.load_adapter(str(folder), with_head=False, use_safetensors=True)
        model.train_adapter("task")
        return model

    yield "houlsby", adapters.DoubleSeqBnConfig(reduction_factor=8), start, load
    yield "pfeiffer", adapters.SeqBnConfig(reduction_factor=8), start, load
    yield "parallel", adapters.ParBnConfig(reduction_factor=8), start, load


def train(model: torch.nn.Module, batches: torch.Tensor, learning_rate: float, weight_decay: float) -> list[float]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=learning_rate, betas=BETAS, eps=EPS, weight_decay=weight_decay)
    losses = []
    for tokens in batches:
        logits = model(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main():
    logging.disable(logging.WARNING)
    library = {"peft": peft_methods, "adapterhub": adapterhub_methods}[sys.argv[1]]
    batches = torch.tensor(np.random.default_rng(0).integers(0, 97, (STEPS, BATCH, LENGTH)))
    for seed, (name, config, start, load) in enumerate(library()):
        folder = HERE / "training" / name
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(seed)
        start(config, folder / "initial")
        losses = np.array([train(load(folder / "initial").train(), batches, *run) for run in RUNS])
        np.savez_compressed(
            folder / "losses.npz",
            batches=batches.numpy().astype(np.int32),
            learning_rate=np.array([run[0] for run in RUNS]),
            weight_decay=np.array([run[1] for run in RUNS]),
            betas=np.array(BETAS),
            eps=np.array(EPS),
            losses=losses,
            versions=np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}", sys.argv[1]]),
        )
        trainable = sum(parameter.numel() for parameter in load(folder / "initial").parameters() if parameter.requires_grad)
        apart = np.abs(losses / losses[0] - 1).max(axis=1)
        print(
            f"{name:9} {trainable} trained; first {losses[0, 0]:.5f}, last {losses[:, -1]}; relative distance to run 0: {apart}", flush=True
        )


if __name__ == "__main__":
    main()
