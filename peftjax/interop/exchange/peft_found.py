"""From what a PEFT directory holds, module by module, to the methods that make room for it."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from peftjax.interop.exchange.modules import Modules, logical
from peftjax.interop.exchange.peft_checks import ensures_tying
from peftjax.interop.exchange.peft_rules import targeted
from peftjax.interop.exchange.peft_table import Number, PeftMethod
from peftjax.interop.exchange.placing import by_layers, methods_for
from peftjax.peft.classifier import classifier
from peftjax.peft.parts import bitfit, full
from peftjax.peft.select import named
from peftjax.peft.tokens import trainable_tokens


def default(number: Number, config: Mapping[str, Any]) -> Any:
    """What a config says of a number for all modules."""
    value = config.get(number.theirs)
    return number.default if value is None else value


def of_method(method: PeftMethod, found: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any], modules: Modules) -> tuple[Any, ...]:
    """The methods of the directory's type. `found`: numbers by our module."""
    if not found:
        return ()
    names = {path: modules.theirs[path].name for path in found}
    settings = {f.ours: f.read(config) for f in method.fields} | method.alike(config, names)
    if method.peft_type == "LORA":
        settings["ensure_weight_tying"] = ensures_tying(config, modules)
    own = {number.ours: default(number, config) for number in method.numbers}
    patterns = {number.ours: number.ours_patterns for number in method.numbers if number.ours_patterns}
    return methods_for(method.make, found, modules.config.layers, own, patterns, **settings)


def of_saved(paths: Sequence[str], labels: int, config: Mapping[str, Any], modules: Modules) -> tuple[Any, ...]:
    """The methods of modules saved whole. `labels`: how many the head has, where the base is an encoder."""
    if not paths:
        return ()
    if hasattr(modules.config, "labels") and "head" in paths:
        known = modules.config.labels
        head = classifier(labels=known if len(known) == labels else labels, hidden="pool" in paths)
        return (head, *of_saved([path for path in paths if path not in ("head", "pool")], labels, config, modules))
    everywhere, groups = set(range(modules.config.layers)), collections.defaultdict(list)
    for module, layers in sorted(by_layers(paths).items()):
        groups[None if layers in ({None}, everywhere) else tuple(sorted(layers))].append(named(module))
    tying = ensures_tying(config, modules)
    return tuple(full(targets=tuple(targets), layers=layers, ensure_weight_tying=tying) for layers, targets in groups.items())


def of_biases(paths: Sequence[str], config: Mapping[str, Any], modules: Modules, origin: str) -> tuple[Any, ...]:
    """The methods of trained biases.

    Raises:
        ValueError: biases that the config does not ask for, or none where it does.
    """
    mode = config.get("bias") or "none"
    if not paths and (mode == "none" or not _could_have_bias(mode, config, modules)):
        return ()
    if mode == "none" or not paths:
        raise ValueError(f"{origin}: bias is {mode!r}, and the file holds {len(paths)} biases")
    if mode == "all":
        return (bitfit(targets="all"),)
    return (bitfit(targets=tuple(sorted({named(logical(path)) for path in paths}))),)


def of_tokens(tokens: Mapping[str, tuple[int, ...]]) -> tuple[Any, ...]:
    """The methods of trained token rows, by their module."""
    return tuple(
        trainable_tokens(ids=ids, targets="lm_head" if name.endswith("lm_head") else "embed_tokens") for name, ids in sorted(tokens.items())
    )


def _could_have_bias(mode: str, config: Mapping[str, Any], modules: Modules) -> bool:
    """Whether this base has a bias that the config would train."""
    names = list(modules.ours)
    names = targeted(names, modules.linear, config) if mode != "all" else names
    return any(modules.has_bias(path) for name in names for path in modules.ours[name])
