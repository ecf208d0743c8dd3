"""From what stands at each kernel of each layer to the methods that make room for the same: one for the modules that lie on the same
layers, with patterns for the numbers that differ from its own.

    {"blocks/0/attn/q/kernel": Rule(lora, rank=4), "blocks/1/attn/q/kernel": Rule(lora, rank=8)}
    (lora(rank=4, targets=("q_proj",), rank_pattern={"blocks/1/attn/q": 8}),)
"""

import collections
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from peftjax.nn.tree import numbered
from peftjax.peft.dense_delta import dense_delta
from peftjax.peft.lora import lora
from peftjax.peft.select import module_of, named

T = TypeVar("T")


class Rule(NamedTuple):
    """What stands at one kernel of one layer: `kind` of method, its rank and scale (of a LoRA), and whether a bias goes with it."""

    kind: type
    rank: int = 0
    scale: float = 1.0
    biased: bool = False


def methods_of(rules: Mapping[str, Rule], layers: int, name: str, apart: bool = False) -> tuple[Any, ...]:
    """The methods that put nodes like these on a base of so many layers: one for the modules that lie on the same layers.

    Args:
        rules: by path with the layer's number.
        apart: a head that is tied to the embedding does not follow.
    """
    found = {module_of(key): rule for key, rule in sorted(rules.items(), key=lambda item: (item[1].kind.__name__, item[1].biased))}
    methods = []
    for (kind, biased), lies_on, modules in alike(found, layers, lambda rule: (rule.kind, rule.biased)):
        shared = {"targets": tuple(named(module) for module in sorted(modules)), "layers": lies_on, "name": name}
        if kind is dense_delta:
            methods.append(dense_delta(**shared))
            continue
        ranks = {module: {layer: rule.rank for layer, rule in by_layer.items()} for module, by_layer in modules.items()}
        alphas = {module: {layer: rule.scale * rule.rank for layer, rule in by_layer.items()} for module, by_layer in modules.items()}
        rank = collections.Counter(rank for by_layer in ranks.values() for rank in by_layer.values()).most_common(1)[0][0]
        if ranks == alphas:
            alpha, alphas = None, {}
        else:
            alpha = collections.Counter(alpha for by_layer in alphas.values() for alpha in by_layer.values()).most_common(1)[0][0]
        tying = {"ensure_weight_tying": False} if apart and "embed" in modules else {}
        methods.append(lora(rank=rank, alpha=alpha, rank_pattern=exceptions(ranks, rank), alpha_pattern=exceptions(alphas, alpha),
                            lora_bias=biased, **shared, **tying))
    return tuple(methods)


def alike(
    found: Mapping[str, T], layers: int, kind: Callable[[T], Any]
) -> list[tuple[Any, tuple[int, ...] | None, dict[str, dict[int | None, T]]]]:
    """What one method can cover: (its kind, the layers it lies on, None for all, what is there by logical module and layer) for each group
    of modules of one kind on the same layers. Those on all layers come first.

    Args:
        found: by module with the layer's number, `blocks/7/attn/q` or `embed`.
        layers: of the base.
        kind: what keeps modules apart.
    """
    apart: dict[tuple[str, Any], dict[int | None, T]] = collections.defaultdict(dict)
    for path, one in found.items():
        module, layer = numbered(path)
        apart[module, kind(one)][layer] = one
    groups: dict[tuple, dict[str, dict[int | None, T]]] = collections.defaultdict(dict)
    for (module, own), by_layer in apart.items():
        lies_on = tuple(sorted(layer for layer in by_layer if layer is not None))
        groups[own, None if lies_on in ((), tuple(range(layers))) else lies_on][module] = by_layer
    return [(own, lies_on, modules) for (own, lies_on), modules in sorted(groups.items(), key=lambda group: group[0][1] or ())]


def exceptions(values: Mapping[str, Mapping[int | None, Any]], default: Any) -> dict[str, Any]:
    """Exceptions from `default`: by module where all its layers agree, else by layer, which is looked at first."""
    single, whole = {}, {}
    for module, by_layer in sorted(values.items()):
        if len(set(by_layer.values())) == 1:
            whole[named(module)] = next(iter(by_layer.values()))
        else:
            single |= {module.replace("blocks/", f"blocks/{layer}/", 1): value for layer, value in sorted(by_layer.items())}
    return {pattern: value for pattern, value in (single | whole).items() if value != default}
