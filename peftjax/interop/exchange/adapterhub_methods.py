"""AdapterHub's methods as tables: our nodes against their tensors and config fields.

| method | node | their keys, N the adapter's name, <trunk> "model", "bert" or the like |
|---|---|---|
| bottleneck | Bottleneck | <place>.adapters.N. adapter_down.0.weight (M, D), .bias; adapter_up.weight (D, M), .bias; scaling; norms; gate |
| the same with ln_before | Bottleneck | the linear is adapter_down.1; the norm is there twice: adapter_down.0 and adapter_norm_before |
| Compacter | Compacter | <place>.adapters.N. adapter_down.0.W_left (N, D / N, R), W_right (N, R, M / N), b; adapter_up likewise |
| | rule | <trunk>.shared_parameters.N.phm_rule (N, N, N) |
| invertible | Coupling | <trunk>.invertible_adapters.N. F.0.weight (M, D / 2), .bias; F.2.weight (D / 2, M), .bias; G likewise |
| LoRA | LoRA | <module>.loras.N.lora_A (R, in), lora_B (out, R) |
| with a gate | GatedLoRA | those of LoRA, and gate.weight (1, in), .bias |
| DoRA, with alpha = r and no bias | DoRA | those of LoRA, and m.weight (out, 1) |
| IA3 | IA3, on outputs | <module>.loras.N.lora_B (out, 1) |
| VeRA | VeRA, or the LoRA that it makes | <module>.loras.N.vera_D (R, R), vera_B (out, out) |
| | a, b | <trunk>.shared_parameters.N.lora_A (R, in), lora_B (out, R) |
| on GPT-2's c_attn | on q, k, v | the chosen parts in the order q, k, v, along the first axis of every tensor |
| ReFT | ReFT | <block>.reft_layer.refts.N.units.U. learned_source.weight (R, D), .bias; projection.weight (R, D) or its parametrisation |
| prefix tuning | Prefix, PrefixEncoder | see `adapterhub_prefix` |
| prompt tuning, on encoders | Prompt | see `adapterhub_prompt` |
| AdapterFusion | Fusion | see `adapterhub_fusion` |

What a bottleneck computes is said in `adapterhub_bottlenecks`, what a DoRA computes in `adapterhub_loras`. A method that joins brings a
`HubMethod` there. Heads are in `heads`.
"""

from collections.abc import Mapping
from typing import Any

from peftjax.interop.exchange.adapterhub_bottlenecks import BOTTLENECK, COMPACTER, INVERTIBLE
from peftjax.interop.exchange.adapterhub_loras import DORA, GATED_LORA, IA3, LORA, VERA
from peftjax.interop.exchange.adapterhub_prompt import PROMPT_TUNING
from peftjax.interop.exchange.adapterhub_reft import REFT
from peftjax.interop.exchange.adapterhub_table import DEFAULTS, HubMethod

METHODS = (BOTTLENECK, COMPACTER, INVERTIBLE, LORA, GATED_LORA, DORA, IA3, VERA, REFT, PROMPT_TUNING)


def methods_of(config: Mapping[str, Any]) -> list[HubMethod]:
    """Those that a config asks for; [] for an architecture that is not here."""
    kind = config.get("architecture")
    if kind not in DEFAULTS:
        return []
    return [method for method in METHODS if method.architecture == kind and method.asked(DEFAULTS[kind] | dict(config))]
