"""HF PEFT's half of the comparison: LoRA, rsLoRA and DoRA of rank 4, alpha 8, on every linear of the layers.

    python scripts/peers/peft_steps.py --base DIRECTORY --steps STEPS.npz --out OUT        (torch, transformers 5, peft)
"""

import warnings
from pathlib import Path

import peft
import training

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def methods():
    """(name, start(base, folder), load(base, folder) -> model) of each method."""
    warnings.simplefilter("ignore")

    def start(**fields):
        def save(base: Path, folder: Path) -> None:
            config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=LINEARS, task_type="CAUSAL_LM", **fields)
            peft.get_peft_model(training.load_base(base), config).save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)

        return save

    def load(base: Path, folder: Path):
        return peft.PeftModel.from_pretrained(training.load_base(base), folder, is_trainable=True)

    yield "lora", start(), load
    yield "rslora", start(use_rslora=True), load
    yield "dora", start(use_dora=True), load


if __name__ == "__main__":
    training.main(methods())
