"""Makes tests/golden/inits/golden.npz: where HF PEFT's own code starts the factors of a LoRA, of one small weight.

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 attrs numpy
    /tmp/golden/bin/python tests/golden/make_inits_golden.py

    weight [out, in], x [T, in], slopes [T, out]     the weight, what goes in, and the gradients behind it
    <init>/a [R, in], <init>/b [out, R]              for pissa, olora, corda_ipm, corda_kpm, lora_ga_<direction>_<scale>

LoftQ is not among them: PEFT's needs bitsandbytes on a GPU.
"""

from pathlib import Path

import numpy as np
import peft
import torch
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga

HERE = Path(__file__).parent
RANK, ALPHA, INPUTS, OUTPUTS, TOKENS = 2, 3, 7, 10, 50
LORA_GA = [("ArB2r", "unit"), ("A2rBr", "unit"), ("ArBr", "unit"), ("ArB2r", "stable"), ("ArB2r", "gd_scale")]


class Model(torch.nn.Module):
    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
        self.layer.weight.data = weight.clone()

    def forward(self, x):
        return self.layer(x)


def main():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    weight, x, slopes = draw(OUTPUTS, INPUTS), draw(TOKENS, INPUTS) * torch.arange(1.0, INPUTS + 1), draw(TOKENS, OUTPUTS)
    found = {"weight": weight, "x": x, "slopes": slopes}

    def start(name: str, prepare=lambda model, config: None, **fields):
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["layer"], **fields)
        model = Model(weight)
        prepare(model, config)
        layer = peft.get_peft_model(model, config).base_model.model.layer
        found[f"{name}/a"], found[f"{name}/b"] = (getattr(layer, f"lora_{factor}").default.weight.data for factor in "AB")

    def see(model, config):
        preprocess_corda(model, config, run_model=lambda: model(x[None]))

    def slope(model, config):
        preprocess_loraga(model, config, train_step=lambda: (model(x) * slopes).sum().backward())

    start("pissa", init_lora_weights="pissa")
    start("olora", init_lora_weights="olora")
    for keeps in ("ipm", "kpm"):
        start(f"corda_{keeps}", see, init_lora_weights="corda", corda_config=CordaConfig(corda_method=keeps))
    for direction, scale in LORA_GA:
        config = peft.LoraGAConfig(direction=direction, scale=scale)
        start(f"lora_ga_{direction}_{scale}", slope, init_lora_weights="lora_ga", lora_ga_config=config)
    versions = np.array([f"torch {torch.__version__}", f"peft {peft.__version__}"])
    np.savez_compressed(HERE / "inits" / "golden.npz", **{name: value.numpy() for name, value in found.items()}, versions=versions)


if __name__ == "__main__":
    main()
