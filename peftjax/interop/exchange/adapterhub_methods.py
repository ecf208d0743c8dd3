"""AdapterHub's methods as tables: our nodes against their tensors and config fields.

| method | node | their keys, N the adapter's name |
|---|---|---|
| bottleneck | Bottleneck | <place>.adapters.N. adapter_down.0.weight (M, D), .bias; adapter_up.weight (D, M), .bias; scaling; norms |
| the same with ln_before | Bottleneck | the linear is adapter_down.1; the norm is there twice: adapter_down.0 and adapter_norm_before |
| LoRA | LoRA | <module>.loras.N.lora_A (R, in), lora_B (out, R) |
| DoRA, with alpha = r and no bias | DoRA | those of LoRA, and m.weight (out, 1) |
| on GPT-2's c_attn | on q, k, v | the chosen parts in the order q, k, v: lora_A (parts x R, in), lora_B (parts x D, R) |

What a bottleneck computes is said in `adapterhub_bottlenecks`, what a DoRA computes in `adapterhub_loras`. A method that joins brings a
`HubMethod` there. Heads are in `heads`.
"""

from collections.abc import Mapping
from typing import Any

from peftjax.interop.exchange.adapterhub_bottlenecks import BOTTLENECK
from peftjax.interop.exchange.adapterhub_loras import DORA, LORA
from peftjax.interop.exchange.adapterhub_table import DEFAULTS, HubMethod

METHODS = (BOTTLENECK, DORA, LORA)


def methods_of(config: Mapping[str, Any]) -> list[HubMethod]:
    """Those that a config asks for; [] for an architecture that is not here."""
    kind = config.get("architecture")
    if kind not in DEFAULTS:
        return []
    return [method for method in METHODS if method.architecture == kind and method.asked(DEFAULTS[kind] | dict(config))]
