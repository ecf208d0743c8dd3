"""What both peers share: the base, the loop of AdamW steps, and the files. Runs on torch, in the peer's own environment.

    OUT/<method>/initial/     the adapter before the first step, in the peer's format
    OUT/<method>/losses.npz   what STEPS.npz held, and losses [runs, steps] float64: before each step, mean next-token
                              cross-entropy over all predicted positions

torch.optim.AdamW, one parameter group: *all* trainable tensors decay, biases included. No schedule, no clipping, no dropout, float32.
"""

import argparse
import json
import logging
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
import transformers


def load_base(folder: Path) -> torch.nn.Module:
    """A causal model of a directory in the layout of transformers 4 or 5."""
    config = transformers.AutoConfig.from_pretrained(folder)
    rope = json.loads((folder / "config.json").read_text()).get("rope_parameters") or {}
    if "rope_theta" in rope:  # transformers 4 looks for these under other names; settings by layer type are for 5 alone
        config.rope_theta = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default" and transformers.__version__.startswith("4."):
            config.rope_scaling = rope
    return transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)


def train(model: torch.nn.Module, batches: np.ndarray, learning_rate: float, weight_decay: float, betas, eps: float) -> list[float]:
    """Losses of one step a batch [B, T]."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=learning_rate, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
    losses = []
    for tokens in torch.tensor(batches).long():
        logits = model.train()(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def run(methods, base: Path, steps: dict[str, np.ndarray], out: Path) -> None:
    """Every method of a peer, from the same initial values in each run."""
    logging.disable(logging.WARNING)
    for seed, (name, start, load) in enumerate(methods):
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(seed)
        start(base, folder / "initial")
        file = folder / "initial" / "adapter_config.json"
        file.write_text(file.read_text().replace(str(base), base.name))
        runs = zip(steps["learning_rate"].tolist(), steps["weight_decay"].tolist(), strict=True)
        losses = [train(load(base, folder / "initial"), steps["batches"], *rates, steps["betas"], float(steps["eps"])) for rates in runs]
        np.savez_compressed(folder / "losses.npz", **steps, losses=np.array(losses))


def main(methods) -> None:
    parser = argparse.ArgumentParser()
    for name in ("base", "steps", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    run(methods, given.base, dict(np.load(given.steps)), given.out)
