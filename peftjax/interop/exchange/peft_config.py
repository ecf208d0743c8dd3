"""The content of adapter_config.json: what PEFT is told of the tensors beside it, and a check that by its own rules it reads them so."""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from peftjax.interop.exchange import peft_table as t
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.exchange.peft_rules import NOTHING, pattern_value, targeted
from peftjax.peft.lora import lora


@dataclasses.dataclass
class Written:
    """What was written, by names of their modules.

    Attributes:
        numbers: of the modules with the method, by our field.
        masks: which ranks of these were not pruned.
        saved, bias: modules saved whole, and those whose bias is trained.
        tokens: ids of trained rows.
        conv1d: whether kernels are kept [in, out] there.
        ensures_tying: whether the tied head follows the embedding.
    """

    numbers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    masks: dict[str, list[bool]] = dataclasses.field(default_factory=dict)
    saved: list[str] = dataclasses.field(default_factory=list)
    bias: list[str] = dataclasses.field(default_factory=list)
    tokens: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    conv1d: bool = False
    ensures_tying: bool = False


def peft_config(
    method: t.PeftMethod, settings: Any, said: Mapping[str, Any], written: Written, modules: Modules, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of adapter_config.json of a method on modules.

    Args:
        settings: our method, for what PEFT says once.
        said: config fields that say it.
        about: fields that every config has.

    Raises:
        ValueError: what PEFT cannot say.
    """
    names = {path: name for name in written.numbers for path in modules.ours[name]}
    config = dict(about) | dict(method.defaults) | dict(said) | method.unlike(settings, names) | {"peft_type": method.peft_type}
    among = list(written.numbers)
    for number in method.numbers:
        values = {name: written.numbers[name][number.ours] for name in written.numbers}
        asked = getattr(settings, number.ours)
        common = collections.Counter(values[name] for name in among).most_common(1)
        value = asked if asked in [values[name] for name in among] or not common else common[0][0]
        value = config.get(method.numbers[0].theirs) if value is None else value
        config[number.theirs] = _whole_number(value)
        others = {_key(n, number): _whole_number(v) for n, v in sorted(values.items()) if v != value}
        if number.patterns:
            config[number.patterns] = others
        elif others:
            here = sorted(set(values.values()))
            raise ValueError(f"HF PEFT has one {number.ours} for all modules of {method.peft_type}; here are {here}")
        among = [name for name in among if values[name] == value] or among
    linear_and_embedding = [name for name, paths in modules.ours.items() if modules.kind(paths[0]) != "norm"]
    targets = modules.shortest(written.numbers, dotted=True, among=linear_and_embedding)
    if "feedforward_modules" in config:
        targets, config["feedforward_modules"] = _in_words_of_targets(targets, list(written.numbers), config["feedforward_modules"])
    config |= {"target_modules": targets or NOTHING, "modules_to_save": _saved_names(written, modules)}
    modes = ("bias", _bias_mode(written, method, modules)), ("fan_in_fan_out", written.conv1d)
    for name, value in (*modes, ("ensure_weight_tying", written.ensures_tying)):
        if name in method.defaults:
            config[name] = value
        elif value not in ("none", False):
            if name != "fan_in_fan_out":
                raise ValueError(f"HF PEFT has no {name} beside {method.peft_type}")
    if not all(all(mask) for mask in written.masks.values()):
        config["rank_pattern"] = {f"{name}.{method.masked.suffix}": mask for name, mask in sorted(written.masks.items())}
    if written.tokens:
        if method.make is not lora:
            raise ValueError(f"HF PEFT trains token rows beside LoRA, not beside {method.peft_type}; store them apart")
        config["trainable_token_indices"] = {name.rpartition(".")[2]: ids for name, ids in sorted(written.tokens.items())}
    _check(config, method, written, modules)
    return config


def _saved_names(written: Written, modules: Modules) -> list[str] | None:
    names, whole = set(written.saved), []
    for parent in sorted({name.rpartition(".")[0] for name in written.saved} - {""}):
        inside = {name for name in modules.ours if name.startswith(f"{parent}.")}
        if len(inside) > 1 and inside <= names:  # all of a module that holds others, as RoBERTa's classifier does
            whole.append(parent)
            names -= inside
    return whole + modules.shortest(names, dotted=False, among=modules.ours) or None


def _bias_mode(written: Written, method: t.PeftMethod, modules: Modules) -> str:
    if not written.bias:
        return "none"
    with_bias = {name for name, paths in modules.ours.items() if modules.has_bias(paths[0])}
    if set(written.bias) == with_bias - set(written.saved):
        return "all"
    if set(written.bias) == set(written.numbers) & with_bias:
        return method.own_biases
    raise ValueError(
        "HF PEFT trains the biases of none, of all modules or of those with LoRA; here they are those of "
        + ", ".join(sorted(written.bias)[:5])
    )


def _check(config: Mapping[str, Any], method: t.PeftMethod, written: Written, modules: Modules) -> None:
    """What PEFT will make of the config, by its own rules, must be what is in the tensors."""
    hit = set(targeted(list(modules.ours), modules.linear, config)) ^ set(written.numbers)
    wrong = [f"{name}: targeted or not, against what is there" for name in sorted(hit)]
    for name, numbers in written.numbers.items():
        for number in method.numbers:
            read = pattern_value(config[number.patterns] if number.patterns else None, name, config[number.theirs])
            if read != numbers[number.ours]:
                wrong.append(f"{name}: {number.ours} {read}, not {numbers[number.ours]}")
    if wrong:
        raise AssertionError(f"the config written says something else than the tensors: {'; '.join(wrong[:5])}")


def _in_words_of_targets(targets: list[str], names: list[str], chosen: list[str]) -> tuple[list[str], list[str]]:
    """(target_modules, those of its entries that hit the chosen names): PEFT wants the second to be entries of the first."""
    split: list[str] = []
    for entry in targets:
        hits = {name for name in names if name == entry or name.endswith(f".{entry}")}
        split += [entry] if hits <= set(chosen) or not hits & set(chosen) else sorted(hits)
    return split, [entry for entry in split if any(name == entry or name.endswith(f".{entry}") for name in chosen)]


def _key(name: str, number: t.Number) -> str:
    """The key of an exception that hits this module of theirs and no other."""
    return f"^{re.escape(name)}" if number.anchored else re.escape(name.partition(".")[2])


def _whole_number(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return int(value) if float(value).is_integer() else float(value)
