"""The table of methods that stands in the README, made from the methods themselves.

    before  peftjax.peft.spec.METHODS, and the module of each
    after   | `ia3(...)` | IA3: ... | 2205.05638 | where it acts | merges | trainable numbers | file |

What a method is comes from the first line of its module; where it acts, whether it merges and how many numbers it trains are found by
attaching it, as its defaults have it, to the shapes of a base. Nothing is allocated.
"""

import inspect
import re
import sys
from typing import Any

import jax

from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import abstract_params
from peftjax.nn.kernels import Entry, Kernel
from peftjax.nn.tree import place, walk
from peftjax.peft import spec
from peftjax.peft.attach import attach, names_in
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.partition import partition, size

HEADINGS = ("method", "what it is", "source", "acts on", "merges", "trains", "file")
# SmolLM2-135M, the base of the quickstart.
SMOLLM2 = DecoderConfig(
    vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, head_size=64, ff=1536, rope_base=100000.0, tied=True
)
# Settings without which a method does nothing on that base, or is not one of its own.
SETTINGS = {"trainable_tokens": {"ids": (0, 1, 2)}, "compacter": {"size": 20}, "bitfit": {"add": True}, "across_layers": {"of": lora()}}
ELSEWHERE = ("classifier", "fusion")  # for encoders; over other adapters


def rows(config: DecoderConfig = SMOLLM2) -> list[tuple[str, ...]]:
    """One row a method, in the order of their names."""
    base = abstract_params(config)
    return [_row(name, spec.METHODS[name], base) for name in sorted(spec.METHODS)]


def as_table(config: DecoderConfig = SMOLLM2) -> str:
    """The table in Markdown."""
    lines = [HEADINGS, ("---",) * (len(HEADINGS) - 2) + ("--:", "---"), *rows(config)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(name: str, method: Any, base: dict) -> tuple[str, ...]:
    module = sys.modules[method.__module__]
    first = " ".join(inspect.getdoc(module).split("\n\n")[0].split())
    sources = ", ".join(dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", first)))
    path = module.__name__.replace(".", "/") + ".py"
    link = f"[{path.rpartition('/')[2]}]({path})"
    what = re.sub(r" \([^()]*\d{4}\)", "", first).rstrip(".").replace("|", "\\|")
    if name in ELSEWHERE:
        return f"`{name}`", what, sources, "", "", "", link
    params = jax.eval_shape(lambda base: attach(base, [method(**SETTINGS.get(name, {}))], jax.random.key(0)), base)
    trainable, _ = partition(params)
    return f"`{name}`", what, sources, _where(params), _merges(params), f"{size(trainable)[0]:,}", link


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
