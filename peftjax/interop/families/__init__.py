"""The architectures that are read and written, as data: a table of weight names each (see `table` for what it is made of).

A new architecture is a new file here (and, if it computes something new, a field of its config), not new reading code.
"""

from peftjax.interop.families.bert import BERT, ROBERTA, XLM_ROBERTA
from peftjax.interop.families.gemma import GEMMA2, GEMMA3
from peftjax.interop.families.gpt2 import GPT2
from peftjax.interop.families.llama import LLAMA
from peftjax.interop.families.phi3 import PHI3
from peftjax.interop.families.qwen import QWEN2, QWEN3
from peftjax.interop.families.table import FORMATS, Family, Module, Stored, Weight, hf_modules

__all__ = ["FAMILIES", "FORMATS", "Family", "Module", "Stored", "Weight", "family_for", "family_named", "hf_modules"]

FAMILIES = (LLAMA, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, GPT2, BERT, ROBERTA, XLM_ROBERTA)


def family_named(name: str) -> Family:
    """The family of a config."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ValueError(f"family {name!r} is not known; known are {', '.join(family.name for family in FAMILIES)}")


def family_for(form: str, architecture: str, origin: str) -> Family:
    """The family that a file names. `form` is "hf" or "gguf"; `origin` is said in the error.

    Raises:
        ValueError: none has this architecture.
    """
    for family in FAMILIES:
        if architecture in getattr(family, form):
            return family
    known = ", ".join(name for family in FAMILIES for name in getattr(family, form))
    raise ValueError(f"{origin}: architecture {architecture!r} is not supported; supported are {known}")
