"""What a PEFT directory must and must not say, held against a base: its config, its targets, and the copies of base weights in it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from peftjax.hints import did_you_mean
from peftjax.interop.exchange import peft_table as t
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.exchange.peft_methods import LORA_IDLE, METHODS, NOT_HERE
from peftjax.interop.exchange.peft_rules import ENDS, RENAMED, TIED, saved, targeted
from peftjax.nn.kernels import dense
from peftjax.nn.tree import get


def check_config(config: Mapping[str, Any], origin: str) -> None:
    """Refuses another method, and every setting that would change what the tensors mean.

    Raises:
        ValueError: all of them, by name.
    """
    kind = config.get("peft_type")
    known = {*METHODS, *ENDS, *RENAMED}
    if kind not in known:
        why = f" (a method of HF PEFT that is not here{f': {NOT_HERE[kind]}' if NOT_HERE[kind] else ''})" if kind in NOT_HERE else ""
        hint = "" if why else did_you_mean(str(kind), known)
        raise ValueError(f"{origin}: peft_type is {kind!r}{why}{hint}; {', '.join(sorted(known))} can be read")
    method = METHODS.get(kind)
    refused = method.refused if method else {}
    read = t.READ | (method.known if method else {"token_indices"}) | (LORA_IDLE if kind in ("LORA", "ADALORA") else set())
    problems = [f"{name}: {what}" for name, what in refused.items() if config.get(name)]
    for name, value in config.items():
        if name not in read and value not in (None, False, {}, [], ""):
            problems.append(f"{name} = {str(value)[:60]!r}, which is not known here{did_you_mean(name, read)}")
    if t.mutating(config.get("init_lora_weights")):
        problems.append(
            f"init_lora_weights {config['init_lora_weights']!r}: the factors fit a base that was changed when training began. Save it in "
            "PEFT with path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    if kind == "ADALORA" and config.get("lora_alpha", 8) <= 0:
        problems.append(f"lora_alpha {config['lora_alpha']}, in the place of which PEFT takes init_r here; say {config.get('init_r', 12)}")
    if kind == "RANDLORA" and config.get("save_projection") is False:
        problems.append(
            "save_projection False: the random matrices were drawn in bfloat16 or float16, as the machine had it, and divided by their "
            "spread; save it in PEFT with save_projection=True"
        )
    if problems:
        raise ValueError(f"{origin} asks for what is not supported:\n  " + "\n  ".join(problems))


def ensures_tying(config: Mapping[str, Any], modules: Modules) -> bool:
    """Whether the embedding's adapter takes the tied head with it, by the rule of `peft_rules.TIED`."""
    tied = getattr(modules.config, "tied", False) and modules.theirs["embed"].name.endswith(TIED)
    return bool(tied and config.get("ensure_weight_tying"))


def target_problems(
    config: Mapping[str, Any], modules: Modules, adapted: Sequence[str], whole: Sequence[str], complained: str, origin: str, node: str
) -> Iterator[str]:
    """Differences between what the config targets and what the tensors are, one line each.

    Args:
        adapted, whole: our modules that the method stands on, and those saved whole.
        complained: what was said before, so that a module with half its factors is not complained of twice.
        node: what the method is called.
    """
    names = list(modules.ours)
    ensured = {modules.theirs[ours].name for ours in ("head", "embed")} if ensures_tying(config, modules) else set()
    wanted, there = set(targeted(names, modules.linear, config)), {modules.theirs[path].name for path in adapted}
    for name in sorted(wanted - there - ensured):
        if f".{name}." not in complained and f".{name}:" not in complained:
            yield f"missing   {node} of {name}, which {origin} targets"
    for name in sorted(there - wanted):
        yield f"extra     {node} of {name}, which {origin} does not target"
    entries = config.get("modules_to_save") or []
    for name in names:
        has = modules.ours[name][0] in whole
        if has != saved(entries, name) and name not in ensured:
            yield f"{'extra     ' if has else 'missing   '}{t.PREFIX}{name}.weight: modules_to_save is {entries}"


def token_problems(config: Mapping[str, Any], modules: Modules, there: Sequence[str]) -> Iterator[str]:
    """Modules that trainable_token_indices names and that hold no rows, one line each. `there`: their modules that do."""
    indices = config.get("trainable_token_indices")
    names = [modules.theirs["embed"].name] if isinstance(indices, Sequence) and indices else list(indices or {})
    tied_head = modules.theirs["head"].name if getattr(modules.config, "tied", False) and "head" in modules.theirs else None
    for wanted in names:
        hits = [name for name in modules.ours if name == wanted or name.endswith(f".{wanted}")]
        if not hits:
            yield f"missing   {wanted}, which trainable_token_indices names: this base has no such module"
        for name in hits:
            if name not in there and name != tied_head:
                yield f"missing   {t.PREFIX}{name}.{t.TOKENS.tensors[0].suffix}, which trainable_token_indices asks for"


def is_copy(array: np.ndarray, path: str, modules: Modules, base_params: Any) -> bool:
    """Whether a tensor of theirs is the base's own weight, in the precision that the base was loaded in."""
    if path == "head" and getattr(modules.config, "tied", False):
        path = "embed"
    leaf = get(base_params, modules.parameter(path))
    if leaf is None:
        return False
    own = np.asarray(dense(leaf).astype(jnp.float32))
    own = own.T if modules.kind(path) == "linear" else own
    return own.shape == array.shape and np.array_equal(np.asarray(array.astype(leaf.dtype), np.float32), own)
