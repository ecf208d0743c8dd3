"""Context without its encoder: what a network makes of trained embeddings is computed once, for serving and for formats without networks.

    before  prompt = {"tone": PromptEncoder(...)}        blocks/attn/kv = {"task": PrefixEncoder(...)}, shared/task/prefix/...
    after   prompt = {"tone": Prompt(...)}               blocks/attn/kv = {"task": Prefix(...)}
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from peftjax.nn.kernels import Entry
from peftjax.nn.shared import STORE, fill
from peftjax.nn.tree import put, walk
from peftjax.peft.prefix import PrefixEncoder
from peftjax.peft.prompt import PromptEncoder, PromptLSTM


def folded(params: dict) -> dict:
    """A new tree that computes the same, in which no encoder is left. It can be trained on, as another method: `folded_methods`."""
    store = params.get(STORE, {})
    for path, entry in list(walk(params)):
        if isinstance(entry, Entry):
            params = put(params, path, _folded(entry, store))
    for name in store:
        params = put(params, f"{STORE}/{name}/prefix", None)
    return params


def _folded(entry: Entry, store: dict) -> Entry:
    """An entry, or what it is for some rows of a batch, without its encoder."""
    if isinstance(entry, PromptEncoder | PromptLSTM | PrefixEncoder):
        return fill(entry, store).folded()
    base = getattr(entry, "base", None)
    return dataclasses.replace(entry, base=_folded(base, store)) if isinstance(base, Entry) else entry


def folded_methods(methods: Sequence[Any]) -> list[Any]:
    """The methods that attach what `folded` leaves of these."""
    return [method.folded() if hasattr(method, "folded") else method for method in methods]
