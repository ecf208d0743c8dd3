"""From what a file holds, module by module, to the methods that make room for it.

A file says what is there: on this module of this layer a rank and an alpha. A method says it as a rule. One method covers the modules that
lie on the same layers; numbers that differ from its own become patterns where it has such, and separate methods where it has none.
"""

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from peftjax.interop.exchange.modules import layer_of, logical
from peftjax.peft.rules import alike, exceptions
from peftjax.peft.select import named


def methods_for(
    make: Callable[..., Any], found: Mapping[str, Mapping[str, Any]], layers: int, default: Mapping[str, Any],
    patterns: Mapping[str, str], **settings: Any,
) -> tuple[Any, ...]:
    """The methods that put themselves on exactly these modules.

    Args:
        make: the method's class.
        found: numbers of each module by field of the method; by our module with the layer's number, `blocks/7/attn/q` or `embed`.
        layers: of the base.
        default: the file's own numbers; what differs from them becomes a pattern.
        patterns: for each number that may have exceptions, the method's field that holds them.
        settings: the same for all modules.
    """
    fixed = [name for name in default if name not in patterns]  # numbers without exceptions keep modules apart
    methods = []
    for values, lies_on, modules in alike(found, layers, lambda numbers: tuple(numbers[name] for name in fixed)):
        own = dict(default) | dict(zip(fixed, values, strict=True))
        own_patterns = {
            field: exceptions({module: {i: n[name] for i, n in part.items()} for module, part in modules.items()}, own[name])
            for name, field in patterns.items()
        }
        targets = tuple(named(module) for module in sorted(modules))
        methods.append(make(**own, targets=targets, layers=lies_on, **own_patterns, **settings))
    return tuple(methods)


def by_layers(modules: Iterable[str]) -> dict[str, set[int]]:
    """Logical modules with the layers they occur on."""
    on: dict[str, set[int]] = collections.defaultdict(set)
    for path in modules:
        on[logical(path)].add(layer_of(path))
    return dict(on)
