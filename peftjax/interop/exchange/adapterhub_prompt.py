"""AdapterHub's prompt tuning, which it has on encoders alone, as one of its tables (see `adapterhub_methods`).

| combine | entry | tensor |
|---|---|---|
| "prefix" | Prompt, reads="prompt" | <trunk>.prompt_tuning.prompt_tunings.N.prompt_embedding.weight (P, D) |
| "prefix_after_bos" | Prompt, reads="text" | the same |

Virtual tokens join behind the embedding's norm, without positions, and the classifier reads whatever stands first. With PyTorch's
scaled-dot-product attention, its default, virtual tokens see padding too; what is held to it is what it computes with
attn_implementation="eager".
"""

from collections.abc import Mapping, Sequence
from typing import Any

from peftjax.interop.exchange.adapterhub_table import Asked, Held, HubMethod, written
from peftjax.interop.exchange.tensors import Field, Tensor
from peftjax.nn.context import PROMPT
from peftjax.peft.prompt import prompt_tuning

ARCHITECTURE = "prompt_tuning"
FIELDS = (
    Field("prompt_length", "length", 10), Field("combine", "reads", "prefix", {"prefix": "prompt", "prefix_after_bos": "text"}),
)  # fmt: skip
_ROWS = (Tensor("embedding", "prompt_embedding.weight", ("P", "D")),)


def prompt_clash(configs: Sequence[Mapping[str, Any]]) -> str:
    """Why configs cannot stand beside each other, "" where they can."""
    both = {"reft", ARCHITECTURE} <= {config.get("architecture") for config in configs}
    return "ReFT beside a prompt: AdapterHub counts virtual tokens among the positions that it edits" if both else ""


def _problem(asked: Asked) -> str:
    return "" if asked.host.post_norm else f"AdapterHub has prompts on encoders alone; this base is {asked.modules.config.family}"


def _config(held: Held) -> dict[str, Any]:
    (method,) = held.methods
    if not held.host.post_norm or method.offset:
        raise ValueError("AdapterHub has no place for this prompt: it has prompts on encoders alone, behind the embedding's norm and "
                         "without positions, offset=False")
    return written(FIELDS, {field.ours: getattr(method, field.ours) for field in FIELDS})


PROMPT_TUNING = HubMethod(
    "Prompt", prompt_tuning, ARCHITECTURE, "prompt_tunings", lambda config: _ROWS,
    lambda asked: {PROMPT: f"{asked.host.trunk}.prompt_tuning"},
    lambda asked, path: {"P": asked.config["prompt_length"], "D": asked.modules.config.width},
    lambda found, asked, settings: (prompt_tuning(**settings, offset=False),), _config, fields=FIELDS, problem=_problem, stacked=False,
)  # fmt: skip
