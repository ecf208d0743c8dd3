"""The peer's half of scripts/bench_train.py: one case, loaded and warmed up, a step a request. In either peer's environment.

    python scripts/peers/bench_train_peer.py --base DIRECTORY --method lora --shape 4x256 [--checkpointing]

A hand-written loop, as plain as it can be: SDPA attention, float32, AdamW, no dropout, cross-entropy of all positions; on the tokens of
`peftjax.train.bench.dense_batch`.
"""

import argparse
import warnings
from pathlib import Path

import bench_serving
import numpy as np
import torch
import training

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def peft_model(model, **fields):
    """HF PEFT's LoRA of rank 16 on every linear of the layers."""
    import peft

    return peft.get_peft_model(
        model, peft.LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM", **fields)
    )


def adapterhub_model(model, config: str, reduction_factor: float):
    """A bottleneck of AdapterHub."""
    import adapters

    adapters.init(model)
    model.add_adapter("task", config=getattr(adapters, config)(reduction_factor=reduction_factor))
    model.train_adapter("task")
    return model


METHODS = {
    "lora": peft_model,
    "dora": lambda model: peft_model(model, use_dora=True),
    "pfeiffer": lambda model: adapterhub_model(model, "SeqBnConfig", 4),
    "houlsby": lambda model: adapterhub_model(model, "DoubleSeqBnConfig", 8),
}


def load(given):
    """(facts, commands) of a case that has taken its first step."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = METHODS[given.method](training.load_base(given.base))
    if given.checkpointing:
        model.config.use_cache = False
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    batch, length = map(int, given.shape.split("x"))
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, length + 1))
    inputs, targets = torch.tensor(tokens[:, :-1]), torch.tensor(tokens[:, 1:])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.0)

    def step():
        logits = model(input_ids=inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    losses = []
    first = bench_serving.seconds(lambda: losses.append(step()))
    facts = {"first_step_s": first, "trainable": sum(parameter.numel() for parameter in trainable), "loss": losses[0]}
    # Of two steps the second, as on the other side: memory that went back while waiting has to be got again, in a run it is there.
    return facts, {"step": lambda: {"seconds": [bench_serving.seconds(step) for _ in range(2)][-1]}, "peak": bench_serving.peak}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--checkpointing", action="store_true")
    given = parser.parse_args()
    bench_serving.serve(lambda: load(given))
