"""Context without its encoder: what a network makes of trained embeddings is computed once, for serving and for formats without networks.

    before  prompt = {"tone": PromptEncoder(...)}        blocks/attn/kv = {"task": PrefixEncoder(...)}, shared/task/prefix/...
    after   prompt = {"tone": Prompt(...)}               blocks/attn/kv = {"task": Prefix(...)}
"""

from collections.abc import Sequence
from typing import Any

from peftjax.nn.shared import STORE, fill
from peftjax.nn.tree import put, walk
from peftjax.peft.prefix import PrefixEncoder
from peftjax.peft.prompt import PromptEncoder


def folded(params: dict) -> dict:
    """A new tree that computes the same, in which no encoder is left. It can be trained on, as another method: `folded_methods`."""
    for path, entry in list(walk(params)):
        if isinstance(entry, PromptEncoder | PrefixEncoder):
            params = put(params, path, fill(entry, params.get(STORE, {})).folded())
    for path in [path for path, _ in walk(params)]:
        if path.startswith(f"{STORE}/") and path.split("/")[2] == "prefix":
            params = put(params, path, None)
    return params


def folded_methods(methods: Sequence[Any]) -> list[Any]:
    """The methods that attach what `folded` leaves of these."""
    return [method.folded() if hasattr(method, "folded") else method for method in methods]
