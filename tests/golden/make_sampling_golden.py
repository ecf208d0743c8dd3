"""Makes tests/golden/sampling/golden.npz: scores behind Hugging Face's logits processors, in the order of its `generate`.

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.13.0 transformers==5.23.0 numpy
    /tmp/golden/bin/python tests/golden/make_sampling_golden.py

    logits [B, V], ids [B, T]              what was given: ids are prompt and answer so far
    settings                               JSON: a list of {temperature, top_k, top_p, min_p, repetition_penalty}
    scores [N, B, V]                       for each setting; -inf where a filter took a token out
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers.generation import logits_process as hf

HERE = Path(__file__).parent
SETTINGS = [
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.3, "top_k": 100},
    {"temperature": 0.5, "top_p": 0.8},
    {"temperature": 1.0, "top_p": 0.05},
    {"temperature": 1.0, "top_p": 0.0},
    {"temperature": 2.0, "min_p": 0.1},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.0, "repetition_penalty": 1.7},
    {"temperature": 1.0, "repetition_penalty": 0.6},
    {"temperature": 1.5, "top_k": 9, "top_p": 0.7, "min_p": 0.2, "repetition_penalty": 1.3},
]


def processed(logits: torch.Tensor, ids: torch.Tensor, asked: dict) -> torch.Tensor:
    steps = []
    if "repetition_penalty" in asked:
        steps.append(hf.RepetitionPenaltyLogitsProcessor(asked["repetition_penalty"]))
    steps.append(hf.TemperatureLogitsWarper(asked["temperature"]))
    if "top_k" in asked:
        steps.append(hf.TopKLogitsWarper(asked["top_k"]))
    if "top_p" in asked:
        steps.append(hf.TopPLogitsWarper(asked["top_p"]))
    if "min_p" in asked:
        steps.append(hf.MinPLogitsWarper(asked["min_p"]))
    return hf.LogitsProcessorList(steps)(ids, logits.clone())


def main():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy((2 * rng.standard_normal((4, 29))).astype(np.float32))
    ids = torch.from_numpy(rng.integers(0, 29, (4, 6)))
    scores = np.stack([processed(logits, ids, asked).numpy() for asked in SETTINGS])
    (HERE / "sampling").mkdir(exist_ok=True)
    np.savez_compressed(HERE / "sampling" / "golden.npz", logits=logits, ids=ids, settings=json.dumps(SETTINGS), scores=scores)


if __name__ == "__main__":
    main()
