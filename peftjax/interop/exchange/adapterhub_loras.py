"""AdapterHub's LoRA and its relatives as tables (see `adapterhub_methods`).

Its DoRA computes m / ‖W + BA‖ · (W x + bias + s BAx): the norm lacks the scale s, and the bias is scaled; only with s = 1 and no bias is
that DoRA. On GPT-2 it takes norms along the wrong axis; with dropout it trains otherwise, as all of x passes through W there.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from peftjax.interop.exchange.adapterhub_table import DEFAULTS, DROPOUT, Asked, Held, Host, HubMethod, Taken, written
from peftjax.interop.exchange.modules import logical
from peftjax.interop.exchange.placing import methods_for
from peftjax.interop.exchange.tensors import Field, Tensor
from peftjax.peft.gated_lora import gated_lora
from peftjax.peft.ia3 import ia3
from peftjax.peft.lora import lora
from peftjax.peft.select import as_patterns, matches
from peftjax.peft.vera import vera

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


# ---- gated LoRA, IA3 ---------------------------------------------------------------------------------------------------------------

_GATED = (*_LORA, Tensor("gate", "gate.weight", ("1", "in")), Tensor("gate_bias", "gate.bias", ("1",)))
_IA3 = (Tensor("scale", "lora_B", ("out", "1")),)


def _gated_loras(found: Mapping[str, Mapping[str, int]], asked: Asked, settings: Mapping[str, Any]) -> tuple[gated_lora, ...]:
    numbers = {"rank": int(asked.config["r"])}
    return methods_for(gated_lora, dict.fromkeys(found, numbers), asked.modules.config.layers, numbers, {}, gate="row", **settings)


def _gated_config(held: Held) -> dict[str, Any]:
    if held.setting("gate") != "row":
        raise ValueError("AdapterHub's gates are means over a row, gate='row'; a gate of each token has no place there")
    rank = held.one("rank", (piece.arrays["a"].shape[0] for piece in held.pieces.values()))
    config = _module_config(held, "LoRA") | written((DROPOUT,), {"dropout": held.setting("dropout")})
    return config | {"r": rank, "use_gating": True}


def _ia3s(found: Mapping[str, Mapping[str, int]], asked: Asked, settings: Mapping[str, Any]) -> tuple[ia3, ...]:
    return methods_for(ia3, dict.fromkeys(found, {}), asked.modules.config.layers, {}, {}, feedforward=())


def _ia3_problem(asked: Asked) -> str:
    wanted = {"alpha": (1, "a second factor of IA3's scale"), "r": (1, "IA3 of a rank"), "dropout": (0, "dropout on IA3")}
    return "; ".join(f"{name} {asked.config[name]}: {why}" for name, (value, why) in wanted.items() if asked.config[name] != value)


def _ia3_config(held: Held) -> dict[str, Any]:
    config = _module_config(held, "IA3")
    for path in held.pieces:
        if any(matches(pattern, logical(path)) for method in held.methods for pattern in as_patterns(method.feedforward)):
            raise ValueError(f"AdapterHub's IA3 scales the output of {held.modules.theirs[path].name}, and here its input is scaled; "
                             "ia3(feedforward=()) scales outputs alone")
    return config | {"alpha": 1, "r": 1, "composition_mode": "scale", "init_weights": "ia3"}


# ---- VeRA --------------------------------------------------------------------------------------------------------------------------

_VERA = (Tensor("lambda_d", "vera_D", ("R", "R")), Tensor("lambda_b", "vera_B", ("out", "out")))
_MATRICES = (Tensor("vera/a", "lora_A", ("R", "in")), Tensor("vera/b", "lora_B", ("out", "R"), flip=True))


def _vera_problem(asked: Asked) -> str:
    paths = [path for paths in asked.places(VERA).values() for path in paths]
    if any(asked.modules.theirs[path].part for path in paths):
        return f"AdapterHub itself cannot compute with VeRA on the fused {asked.modules.theirs[paths[0]].name}"
    sizes = {asked.modules.sizes(path) for path in paths}
    return f"VeRA on modules of several sizes, {sorted(sizes)}: its one A and B fit some of them alone" if len(sizes) > 1 else ""


def _vera_settled(taken: Taken, asked: Asked) -> Taken:
    """As VeRA where its matrices are the diagonals that they began as, else as the LoRA that they make."""
    scale = np.float32(asked.config["alpha"] / asked.config["r"])
    squares = [array for arrays in taken.arrays.values() for array in arrays.values()]
    if all(np.array_equal(array, np.diag(np.diag(array))) for array in squares):
        arrays = {path: {"lambda_d": np.diag(own["lambda_d"]), "lambda_b": np.diag(own["lambda_b"]) * scale}
                  for path, own in taken.arrays.items()}
        notes = (f"its scale alpha / r = {scale:g} is part of lambda_b here",) if scale != 1 else ()
        return taken._replace(arrays=arrays, notes=notes)
    a, b = taken.shared["vera/a"], taken.shared["vera/b"]
    arrays = {path: {"a": own["lambda_d"] @ a, "b": np.ascontiguousarray((own["lambda_b"] @ b.T).T), "scale": scale}
              for path, own in taken.arrays.items()}
    note = f"vera_D and vera_B are no diagonals, as training leaves them there: read as the LoRA of rank {asked.config['r']} that they make"
    return Taken(arrays, {}, "LoRA", _loras, (note,))


def _veras(found: Mapping[str, Mapping[str, int]], asked: Asked, settings: Mapping[str, Any]) -> tuple[vera, ...]:
    numbers = {"rank": int(asked.config["r"])}
    start = asked.config["vera_d"]
    return methods_for(vera, dict.fromkeys(found, numbers), asked.modules.config.layers, numbers, {},
                       d_initial=0.1 if start is None else start, **settings)  # fmt: skip


def _vera_config(held: Held) -> dict[str, Any]:
    config = _module_config(held, "VeRA")
    rank, start = held.setting("rank"), held.setting("d_initial")
    config |= {"r": rank, "alpha": rank, "dropout": held.setting("dropout"), "vera_d": float(start), "vera_b": 0.0, "init_weights": "vera"}
    why = _vera_problem(Asked(DEFAULTS["lora"] | config, held.modules))
    if why:
        raise ValueError(f"AdapterHub has no place for this VeRA: {why}")
    return config


_GATE = {"use_gating": "a gate beside it"}
_NO_DORA = {"use_dora": "DoRA of VeRA or IA3"}


def _vera(config: Mapping[str, Any]) -> bool:
    return config["vera_d"] is not None or config["vera_b"] is not None


def _plain(config: Mapping[str, Any]) -> bool:
    return config["composition_mode"] == "add" and not _vera(config)


_FIELDS = (DROPOUT, Field("use_dora", "dora", False))
DORA = HubMethod(
    "DoRA", lora, "lora", "loras", lambda config: _DORA, _modules, _module_sizes, _loras, _dora_config,
    asked=lambda config: _plain(config) and bool(config["use_dora"]), fields=_FIELDS, constant=_alpha_over_r, off=_GATE,
    problem=_dora_problem, notes=_dora_notes,
)  # fmt: skip
LORA = HubMethod(
    "LoRA", lora, "lora", "loras", lambda config: _LORA, _modules, _module_sizes, _loras, _lora_config,
    asked=lambda config: _plain(config) and not config["use_dora"] and not config["use_gating"], fields=_FIELDS, constant=_alpha_over_r,
)  # fmt: skip
GATED_LORA = HubMethod(
    "GatedLoRA", gated_lora, "lora", "loras", lambda config: _GATED, _modules, _module_sizes, _gated_loras, _gated_config,
    asked=lambda config: _plain(config) and not config["use_dora"] and bool(config["use_gating"]), fields=(DROPOUT,),
    constant=lambda config: {"scale": np.float32(1)},
)  # fmt: skip
IA3 = HubMethod(
    "IA3", ia3, "lora", "loras", lambda config: _IA3, _modules, _module_sizes, _ia3s, _ia3_config,
    asked=lambda config: config["composition_mode"] == "scale", off=_GATE | _NO_DORA, problem=_ia3_problem,
)  # fmt: skip
VERA = HubMethod(
    "VeRA", vera, "lora", "loras", lambda config: _VERA, _modules, _module_sizes, _veras, _vera_config,
    asked=lambda config: config["composition_mode"] == "add" and _vera(config), fields=(DROPOUT,), shared=_MATRICES,
    settle=_vera_settled, spread=lambda arrays, config, held: {field: np.diag(array) for field, array in arrays.items()},
    off=_GATE | _NO_DORA, problem=_vera_problem,
)  # fmt: skip
