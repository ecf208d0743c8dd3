"""HF PEFT's half of scripts/bench_data.py: a batch a request, padded as a Trainer pads or packed. In an environment with torch and peft.

    python scripts/peers/bench_data_peft.py --base DIRECTORY --rows ROWS.npz --rows_per_step 16 --threads 2

What a user of a Trainer runs: the model's own loss with labels of -100 on prompts and padding, hence logits of all tokens; SDPA attention,
float32, AdamW, clipped gradients, no dropout. Packed lines are plain sequences, without a mask between their rows.
"""

import argparse
import warnings
from pathlib import Path

import bench_serving
import numpy as np
import torch
import training
from bench_train_peer import METHODS


def padded(stored, number: int, count: int):
    """(input_ids, attention_mask, labels [count, longest], rows) of the batch of this number, from the beginning again at the end."""
    each = len(stored["prompt_len"])
    rows = [index % each for index in range(number * count, (number + 1) * count)]
    tokens = [stored["ids"][stored["offsets"][row] : stored["offsets"][row + 1]] for row in rows]
    shape = count, max(map(len, tokens))
    ids, mask, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -100, np.int64)
    for line, (row, values) in enumerate(zip(rows, tokens, strict=True)):
        ids[line, : len(values)], mask[line, : len(values)] = values, 1
        first = max(1, stored["prompt_len"][row])
        labels[line, first : len(values)] = values[first:]
    return ids, mask, labels, count


def packed(stored, number: int, _):
    """The same of packed lines."""
    number %= len(stored["tokens"])
    ids = stored["tokens"][number].astype(np.int64)
    return ids, np.ones_like(ids), stored["labels"][number].astype(np.int64), int(stored["rows"][number])


FORMS = {"padded": padded, "packed": packed}


def load(given):
    """(facts, commands), after a step of each form."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    stored = dict(np.load(given.rows))
    model = METHODS["lora"](training.load_base(given.base)).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.0)

    def step(form: str, number: int) -> dict[str, float]:
        ids, mask, labels, rows = FORMS[form](stored, number, given.rows_per_step)
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}

        def run():
            loss = model(**inputs).loss
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimiser.step()
            loss.item()

        return {"seconds": bench_serving.seconds(run), "tokens": int((labels >= 0).sum()), "rows": rows}

    for form in FORMS:
        step(form, 0)
    return {"trainable": sum(parameter.numel() for parameter in trainable)}, {"step": step, "peak": bench_serving.peak}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--rows_per_step", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    bench_serving.serve(lambda: load(given))
