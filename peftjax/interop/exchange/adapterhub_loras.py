"""AdapterHub's LoRA and its relatives as tables (see `adapterhub_methods`).

Its DoRA computes m / ‖W + BA‖ · (W x + bias + s BAx): the norm lacks the scale s, and the bias is scaled; only with s = 1 and no bias is
that DoRA. On GPT-2 it takes norms along the wrong axis; with dropout it trains otherwise, as all of x passes through W there.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from peftjax.interop.exchange.adapterhub_table import DROPOUT, Asked, Held, Host, HubMethod, written
from peftjax.interop.exchange.modules import logical
from peftjax.interop.exchange.placing import methods_for
from peftjax.interop.exchange.tensors import Field, Tensor
from peftjax.peft.lora import lora

_LORA = (Tensor("a", "lora_A", ("R", "in")), Tensor("b", "lora_B", ("out", "R"), flip=True))
_DORA = (*_LORA, Tensor("magnitude", "m.weight", ("out", "1")))


def _names(host: Host) -> dict[str, str]:
    """Our modules against the names that their config has for them."""
    return {"attn/q": "q", "attn/k": "k", "attn/v": "v", host.intermediate: "intermediate_lora", host.mlp_output: "output_lora"}


def _modules(asked: Asked) -> dict[str, None]:
    config, names = asked.config, _names(asked.host)
    chosen = [module for module, name in names.items() if len(name) == 1 and config["selfattn_lora"] and name in config["attn_matrices"]]
    chosen += [module for module, name in names.items() if len(name) > 1 and config[name]]
    return dict.fromkeys(chosen)


def _module_sizes(asked: Asked, path: str) -> dict[str, int]:
    inputs, outputs = asked.modules.sizes(path)
    return {"R": int(asked.config["r"]), "in": inputs, "out": outputs}


def _loras(found: Mapping[str, Mapping[str, int]], asked: Asked, settings: Mapping[str, Any]) -> tuple[lora, ...]:
    numbers = {"rank": int(asked.config["r"]), "alpha": float(asked.config["alpha"])}
    return methods_for(lora, dict.fromkeys(found, numbers), asked.modules.config.layers, numbers,
                       {"rank": "rank_pattern", "alpha": "alpha_pattern"}, **settings)  # fmt: skip


def _lora_config(held: Held) -> dict[str, Any]:
    biased = next((path for path, piece in held.pieces.items() if "bias" in piece.arrays), None)
    config = _module_config(held, "LoRA")
    if biased:
        raise ValueError(f"AdapterHub has no place for a bias behind its LoRA on {held.modules.theirs[biased].name}")
    rank = held.one("rank", (piece.arrays["a"].shape[0] for piece in held.pieces.values()))
    scale = held.one("scale", (float(piece.arrays["scale"]) for piece in held.pieces.values()))
    asked = [m.alpha for m in held.methods if m.alpha is not None and np.float32(m.alpha / rank) == np.float32(scale)]
    alpha = asked[0] if asked else scale * rank
    settings = {field.ours: held.setting(field.ours) for field in LORA.fields}
    return config | written(LORA.fields, settings) | {"r": rank, "alpha": int(alpha) if float(alpha).is_integer() else alpha}


def _module_config(held: Held, what: str) -> dict[str, Any]:
    """Their names of the modules, and the layers."""
    names, at = _names(held.host), {path: logical(path).removeprefix("blocks/") for path in held.pieces}
    for path, module in at.items():
        if module not in names:
            raise ValueError(f"AdapterHub has no place for {what} on {held.modules.theirs[path].name}; it goes on {', '.join(names)}")
    on = {names[module] for module in at.values()}
    letters = sorted((name for name in on if len(name) == 1), key="qkv".index)
    return {
        "selfattn_lora": bool(letters), "attn_matrices": letters or ["q", "v"], "leave_out": held.left_out(at),
        "intermediate_lora": "intermediate_lora" in on, "output_lora": "output_lora" in on,
    }


def _dora_problem(asked: Asked) -> str:
    biased = next((f"blocks/0/{module}" for module in _modules(asked) if asked.modules.has_bias(f"blocks/0/{module}")), None)
    why = no_dora(asked.modules.config.family, asked.config["alpha"] / asked.config["r"], biased and asked.modules.theirs[biased].name)
    return f"use_dora is not supported here, where AdapterHub's DoRA is another function: {why}" if why else ""


def _dora_config(held: Held) -> dict[str, Any]:
    config = _lora_config(held)
    biased = next((held.modules.theirs[path].name for path in held.pieces if held.modules.has_bias(path)), None)
    why = no_dora(held.modules.config.family, config["alpha"] / config["r"], biased)
    if why:
        raise ValueError(f"AdapterHub has no place for this DoRA: {why}; merge it")
    return config


def no_dora(family: str, scale: float, biased: str | None) -> str:
    """Why AdapterHub's DoRA is another function than DoRA, "" where it is the same. biased: a module that has it and a bias."""
    if family == "gpt2":
        return "its norms on GPT-2 run along the wrong axis"
    if np.float32(scale) != 1:
        return f"its norms lack the scale alpha / r, here {float(scale):g}, and are right for alpha = r alone"
    return f"it scales the bias of {biased} too" if biased else ""


def _dora_notes(asked: Asked) -> Iterable[str]:
    if asked.config["dropout"]:
        yield f"dropout {asked.config['dropout']} acts as in HF PEFT's DoRA: what it takes away passes through the base alone"


def _alpha_over_r(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {"scale": np.float32(config["alpha"] / config["r"])}


_OFF = {"use_gating": "a gate", "vera_d": "VeRA", "vera_b": "VeRA", "composition_mode": "IA3 and the like"}
_FIELDS = (DROPOUT, Field("use_dora", "dora", False))
DORA = HubMethod(
    "DoRA", lora, "lora", "loras", lambda config: _DORA, _modules, _module_sizes, _loras, _dora_config,
    asked=lambda config: bool(config["use_dora"]), fields=_FIELDS, constant=_alpha_over_r, off=_OFF, problem=_dora_problem,
    notes=_dora_notes,
)  # fmt: skip
LORA = HubMethod(
    "LoRA", lora, "lora", "loras", lambda config: _LORA, _modules, _module_sizes, _loras, _lora_config,
    asked=lambda config: not config["use_dora"], fields=_FIELDS, constant=_alpha_over_r, off=_OFF,
)  # fmt: skip
