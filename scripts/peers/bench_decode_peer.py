"""The peer's half of scripts/bench_decode.py: `generate` of its own, a request at a time. In either peer's environment.

    python scripts/peers/bench_decode_peer.py --base DIRECTORY --cases base,lora,merged,mixed --prompt 128 --new 64

What a user runs: greedy `model.generate` with its default cache, in float32; end tokens are off. Every case is a model of its own.
"""

import argparse
import warnings
from pathlib import Path

import bench_serving
import numpy as np
import torch
import training
from bench_train_peer import METHODS

ADAPTERS = 8


def mixed(model):
    """Eight LoRAs under names of their own."""
    model = METHODS["lora"](model)
    for number in range(1, ADAPTERS):
        model.add_adapter(f"adapter{number}", model.peft_config["default"])
    return model


MODELS = {
    "base": lambda model: model,
    "lora": METHODS["lora"],
    "merged": lambda model: METHODS["lora"](model).merge_and_unload(),
    "mixed": mixed,
    "pfeiffer": METHODS["pfeiffer"],
    "houlsby": METHODS["houlsby"],
}


def load(given):
    """(facts, commands) of all cases."""
    warnings.simplefilter("ignore")
    models = {case: MODELS[case](training.load_base(given.base)).eval() for case in given.cases.split(",")}

    def generate(case: str, batch: int) -> dict[str, float]:
        model = models[case]
        tokens = torch.tensor(np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, given.prompt)))
        options = {"attention_mask": torch.ones_like(tokens), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        if case == "mixed":
            names = ["default", *(f"adapter{number}" for number in range(1, ADAPTERS))]
            options["adapter_names"] = [names[row % ADAPTERS] for row in range(batch)]
        model.generation_config.eos_token_id = None

        def new_tokens(count):
            out = model.generate(input_ids=tokens, max_new_tokens=count, **options)
            if out.shape != (batch, given.prompt + count):
                raise ValueError(f"{case}: tokens of shape {tuple(out.shape)} instead of {count} new ones")

        seconds = [bench_serving.seconds(lambda count=count: new_tokens(count)) for count in (1, given.new)]
        return {"prefill_s": seconds[0], "total_s": seconds[1]}

    return {"cases": list(models)}, {"generate": generate}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--cases", required=True)
    parser.add_argument("--prompt", type=int, required=True)
    parser.add_argument("--new", type=int, required=True)
    given = parser.parse_args()
    bench_serving.serve(lambda: load(given))
