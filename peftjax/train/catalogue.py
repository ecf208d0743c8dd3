"""The table of methods that stands in the README, made from the methods themselves.

    before  peftjax.peft.spec.METHODS, and the module of each
    after   | `ia3(...)` | IA3: ... | y = ... | 2205.05638 | where it acts | merges | trainable numbers | exchange | file |

What a method is comes from the first line of its module, its formula from the first indented line of the method's own documentation, or
its module's, that is no tree before or after (up to a gap: what follows explains it). Where it acts, whether it merges and how many
numbers it trains are found by attaching it, as its defaults have it, to the shapes of a base, where nothing is allocated. Which formats
hold it is found by writing one, on a tiny base, in each of them.
"""

import dataclasses
import functools
import inspect
import re
import sys
from typing import Any

import jax
import numpy as np

from peftjax.hints import did_you_mean
from peftjax.interop.exchange.adapter import Adapter, extract
from peftjax.interop.exchange.adapterhub_write import adapterhub_content
from peftjax.interop.exchange.gguf_lora import gguf_lora_content
from peftjax.interop.exchange.peft_methods import METHODS
from peftjax.interop.exchange.peft_table import PeftMethod
from peftjax.interop.exchange.peft_write import peft_content
from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import abstract_params, init_params
from peftjax.nn.kernels import Entry, Kernel
from peftjax.nn.tree import place, walk
from peftjax.peft import (
    adapter_plus,
    compacter_plus_plus,
    direft,
    houlsby,
    houlsby_inv,
    loreft,
    mam,
    noreft,
    parallel,
    pfeiffer,
    pfeiffer_inv,
    scaled_parallel,
    spec,
    unipelt,
)
from peftjax.peft.attach import attach, names_in
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.partition import partition, size

HEADINGS = ("method", "what it is", "formula", "source", "acts on", "merges", "trains", "exchange", "file")
ALIGNED = ("---",) * 6 + ("--:", "---", "---")
# SmolLM2-135M, the base of the quickstart.
SMOLLM2 = DecoderConfig(
    vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, head_size=64, ff=1536, rope_base=100000.0, tied=True
)
# Names for settings of a method, or for several methods together.
PRESETS = {one.__name__: one for one in (
    houlsby, pfeiffer, parallel, scaled_parallel, adapter_plus, compacter_plus_plus, loreft, noreft, direft, mam, unipelt, pfeiffer_inv,
    houlsby_inv,
)}  # fmt: skip
# Settings without which a method does nothing on that base, or is not one of its own.
SETTINGS = {"trainable_tokens": {"ids": (0, 1, 2)}, "compacter": {"size": 20}, "bitfit": {"add": True}, "across_layers": {"of": lora()}}
# What AdapterHub's are, where the defaults are more or other than that.
NARROWER = {
    "lora": {"targets": ("q_proj", "v_proj")}, "gated_lora": {"gate": "row"}, "vera": {"targets": ("k_proj", "v_proj")},
    "ia3": {"targets": ("k_proj", "v_proj"), "feedforward": ()}, "prefix": {"offset": False},
}  # fmt: skip
ELSEWHERE = ("classifier", "fusion")  # for encoders; over other adapters
TINY = DecoderConfig(vocab_size=64, width=64, layers=1, heads=1, kv_heads=1, head_size=64, ff=64, tied=True)  # kernels of one shape
NOTHING_DERIVED = PeftMethod.constant
FORMATS = {
    "PEFT": lambda adapter: _peft(peft_content(adapter, TINY)[1]),
    "AdapterHub": lambda adapter: adapterhub_content(adapter, TINY, "default") and "",
    "GGUF": lambda adapter: gguf_lora_content(adapter, TINY) and "",
}


@functools.cache
def rows(config: DecoderConfig = SMOLLM2) -> tuple[tuple[str, ...], ...]:
    """One row a method, in the order of their names."""
    base, tiny = abstract_params(config), init_params(TINY, jax.random.key(0))
    return tuple(_row(name, spec.METHODS[name], base, tiny) for name in sorted(spec.METHODS))


def as_table(config: DecoderConfig = SMOLLM2) -> str:
    """The table in Markdown."""
    lines = [HEADINGS, ALIGNED, *rows(config)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_text(name: str) -> str:
    """One method at length: what its module says, how it is stated, and what its settings mean; or a preset, and the methods that it is.

    Raises:
        ValueError: no such method or preset, with the nearest one.
    """
    if name in PRESETS:
        return _preset(name)
    if name not in spec.METHODS:
        known = (*spec.METHODS, *PRESETS)
        raise ValueError(f"no method is called {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
    method = spec.METHODS[name]
    stated = "".join(f"    {field.name}{_default(field)},\n" for field in dataclasses.fields(method))
    return "\n\n".join([inspect.getdoc(sys.modules[method.__module__]), f"{name}(\n{stated})", inspect.getdoc(method)])


def formula(method: Any) -> str:
    """What a method computes, as its documentation or its module's says it.

    Raises:
        ValueError: neither does.
    """
    for text in (inspect.getdoc(method), inspect.getdoc(sys.modules[method.__module__])):
        before = text.partition("Attributes:")[0]
        found = re.search(r"^    (?!before |after | )(.+?)(?: {3,}.*)?$", before, re.MULTILINE)
        if found:
            return found[1].rstrip(",;")
    raise ValueError(f"{method.__name__}: neither its documentation nor that of {method.__module__} has an indented line with its formula")


def exchange(*adapters: Adapter) -> str:
    """The formats beside our own that hold one of these adapters: "PEFT LORA, AdapterHub, GGUF"."""
    found = {}
    for adapter in adapters:
        for name, content in FORMATS.items():
            try:
                found.setdefault(name, f"{name} {content(adapter)}".strip())
            except ValueError:  # no place for it, which the writers say in detail
                continue
    return ", ".join(found[name] for name in FORMATS if name in found)


def _preset(name: str) -> str:
    made = PRESETS[name]()
    parts = made if isinstance(made, list) else [made]
    stated = "\n".join(f"    {spec.as_code(one)}" for one in parts)
    kinds = " or ".join(dict.fromkeys(f"`peftjax methods {type(one).__name__}`" for one in parts))
    return "\n\n".join([inspect.getdoc(PRESETS[name]), f"{name}() is\n\n{stated}", f"Settings: {kinds}."])


def _default(field: dataclasses.Field) -> str:
    """"=8", or nothing where the setting must be given."""
    if field.default_factory is not dataclasses.MISSING:
        return f"={field.default_factory()!r}"
    return "" if field.default is dataclasses.MISSING else f"={field.default!r}"


def _made(method: Any, base: dict) -> Adapter:
    """An adapter of the method: ones, which take no time to make, or its own values where HF PEFT derives some of them and compares."""
    def attached(params):
        return attach(params, [method], jax.random.key(0))

    derived = any(isinstance(method, one.make) and one.constant is not NOTHING_DERIVED for one in METHODS.values())
    params = attached(base) if derived else jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), jax.eval_shape(attached, base))
    return extract(params, [method])


def _peft(config: dict[str, Any]) -> str:
    return f"{config['peft_type']} modules_to_save" if config.get("modules_to_save") else config["peft_type"]


def _row(name: str, method: Any, base: dict, tiny: dict) -> tuple[str, ...]:
    module = sys.modules[method.__module__]
    first = " ".join(inspect.getdoc(module).split("\n\n")[0].split())
    sources = ", ".join(dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", first)))
    path = module.__name__.replace(".", "/") + ".py"
    link = f"[{path.rpartition('/')[2]}]({path})"
    what = re.sub(r" \([^()]*\d{4}\)", "", first).rstrip(".").replace("|", "\\|")
    computes = formula(method).replace("|", "\\|")
    if name in ELSEWHERE:
        return f"`{name}`", what, computes, sources, "", "", "", "", link
    made = method(**SETTINGS.get(name, {}))
    params = jax.eval_shape(lambda base: attach(base, [made], jax.random.key(0)), base)
    trainable, _ = partition(params)
    ways = [made, *([dataclasses.replace(made, **NARROWER[name])] if name in NARROWER else [])]
    formats = exchange(*(_made(way, tiny) for way in ways))
    return f"`{name}`", what, computes, sources, _where(params), _merges(params), f"{size(trainable)[0]:,}", formats, link


def _where(params: dict) -> str:
    """The last names of the places that hold something of an adapter."""
    found = {}
    for path, value in walk(params):
        if isinstance(value, Kernel | Entry) and names_in(value) and not path.startswith("shared/"):
            logical = place(path, 0).logical.rpartition("/")[0]
            found[logical.removeprefix("blocks/").replace("attn/", "").replace("mlp/", "")] = None
    return ", ".join(found)


def _merges(params: dict) -> str:
    try:
        jax.eval_shape(merge, params)
    except TypeError:
        return "no"
    return "yes"
