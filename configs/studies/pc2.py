"""What adapters cost when they are served: base, merged LoRA, LoRA beside the base, bottlenecks, at four batch x length and in decoding.

    python scripts/latency.py --config configs/studies/pc2.py            SmolLM2-135M
    python scripts/latency.py --config configs/studies/pc2.py:t128       random weights, width 128, 4 layers

Predicted before it was measured: merged = base (1.00 within 0.02); Pfeiffer below Houlsby everywhere; what comes on top falls as batch x
length grows; Houlsby of 64 on SmolLM2 at 8x128 within 4.2 to 10 % (its FLOPs are +4.2 % of a layer's); above 10 % in decoding on the
small base. A bottleneck of size 1, which computes next to nothing, is the control: it tells the cost of further operations alone.
On SmolLM2-135M, LoRA of rank 16 on all linear layers and Houlsby of 64 need the same FLOPs, in 14 products a layer and in 4.
Measured on 2 CPU cores, t128, prompts of 32, 128 and 8x128 tokens: LoRA on all linear layers 1.40, 1.21 and 1.27 times the base, Houlsby
1.18, 1.13 and 1.11, Pfeiffer 1.09, 1.07 and 1.06, the control 1.12, 0.98 and 1.01, merged 1.01, 1.02 and 1.01. SmolLM2-135M at 8x128:
Houlsby 1.059 [1.052, 1.094], merged 1.003; at fewer tokens the arms differ from the base by less than two compilations do. README has
intervals and the rest.
"""

from peftjax.peft import houlsby, lora, parallel, pfeiffer
from peftjax.study.arms import Arm
from peftjax.study.latency_config import as_data, default_config


def get_config(variant: str = ""):
    """The config; `variant` is "" (SmolLM2-135M), "t128" or "runlocal" (t128 in a few rounds)."""
    config = default_config()
    everywhere = lora(rank=16, targets="all-linear")
    config.arms = as_data(
        Arm("base"),
        Arm("merged LoRA", (everywhere,), form="merged"),
        Arm("LoRA r16, all linear", (everywhere,)),
        Arm("LoRA r16, q and v", (lora(rank=16, targets=("q_proj", "v_proj")),)),
        Arm("Pfeiffer 64", (pfeiffer(size=64),)),
        Arm("Houlsby 64", (houlsby(size=64),)),
        Arm("parallel 64", (parallel(size=64),)),
        Arm("control: Houlsby 1", (houlsby(size=1),)),
        Arm("8 LoRAs r16 in a batch", (everywhere,), form="bank", adapters=8),
        Arm("8 Pfeiffer 64 in a batch", (pfeiffer(size=64),), form="bank", adapters=8),
    )
    config.train, config.unroll = ("4x64",), False  # sixty programs of thirty layers written out would compile for half an hour
    if variant in ("t128", "runlocal"):
        config.base.shape = {
            "vocab_size": 3072, "width": 128, "layers": 4, "heads": 4, "kv_heads": 2, "head_size": 32, "ff": 352, "tied": True
        }
        config.rounds, config.unroll = 200 if variant == "t128" else 5, True
    elif variant:
        raise ValueError(f"no variant {variant!r}; there are t128 and runlocal")
    return config
