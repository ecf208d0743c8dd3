"""From the LoRA factors that a file holds to the methods that make room for them.

A file says, module by module, what is there: a rank and an alpha. A method says it as a rule. One `lora(...)` covers the modules that lie
on the same layers; ranks and alphas that differ from its own become patterns.
"""

import collections
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from peftjax.interop.exchange.modules import layer_of, logical
from peftjax.peft.lora import lora
from peftjax.peft.select import NAMES


class Found(NamedTuple):
    """What a file says of one module: its rank, and the alpha that belongs to it."""

    rank: int
    alpha: float


def lora_methods(found: Mapping[str, Found], layers: int, default: Found, **settings: Any) -> tuple[lora, ...]:
    """The methods that put a LoRA on exactly these modules.

    Args:
        found: by our module with the layer's number, `blocks/7/attn/q` or `embed`.
        layers: of the base.
        default: the file's own rank and alpha; what differs from them becomes a pattern.
        settings: of `lora`, the same for all.
    """
    on: dict[str, dict[int | None, Found]] = collections.defaultdict(dict)
    for path, what in found.items():
        on[logical(path)][layer_of(path)] = what
    everywhere = frozenset(range(layers))
    groups: dict[frozenset | None, list[str]] = collections.defaultdict(list)
    for module, by_layer in on.items():
        lies_on = frozenset(layer for layer in by_layer if layer is not None)
        groups[None if not lies_on or lies_on == everywhere else lies_on].append(module)
    methods = []
    for lies_on, modules in sorted(groups.items(), key=lambda group: (group[0] is not None, sorted(group[0] or ()))):
        ranks = _patterns({module: {i: f.rank for i, f in on[module].items()} for module in modules}, default.rank)
        alphas = _patterns({module: {i: float(f.alpha) for i, f in on[module].items()} for module in modules}, float(default.alpha))
        methods.append(
            lora(
                rank=default.rank,
                alpha=default.alpha,
                targets=tuple(named(module) for module in sorted(modules)),
                rank_pattern=ranks,
                alpha_pattern=alphas,
                layers=None if lies_on is None else tuple(sorted(lies_on)),
                **settings,
            )
        )
    return tuple(methods)


def named(module: str) -> str:
    """The field's name of one of our modules where there is one: `blocks/attn/q` -> `q_proj`."""
    return next((name for name, pattern in NAMES.items() if pattern == module), module)


def by_layers(modules: Iterable[str]) -> dict[str, set[int]]:
    """Logical modules with the layers they occur on."""
    on: dict[str, set[int]] = collections.defaultdict(set)
    for path in modules:
        on[logical(path)].add(layer_of(path))
    return dict(on)


def _patterns(values: Mapping[str, Mapping[int | None, Any]], default: Any) -> dict[str, Any]:
    """Exceptions from `default`: by module where all its layers agree, else by layer, which is looked at first."""
    single, whole = {}, {}
    for module, by_layer in sorted(values.items()):
        if len(set(by_layer.values())) == 1:
            value = next(iter(by_layer.values()))
            if value != default:
                whole[named(module)] = value
        else:
            for layer, value in sorted(by_layer.items()):
                if value != default:
                    single[module.replace("blocks/", f"blocks/{layer}/", 1)] = value
    return single | whole
