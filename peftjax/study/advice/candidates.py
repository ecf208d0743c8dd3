"""Candidates: methods in the forms in which they can be served, with the traits that rules ask for.

    LoRA r16, all linear, merged        Candidate(method="LoRA r16, all linear", family="lora", form="merged", merges=True, ...)
    Houlsby 64, several in a batch      Candidate(method="Houlsby 64", family="bottleneck", form="bank", merges=False, ...)

Sizes are matched where they can be: LoRA of rank 16 on all linear layers and Houlsby of 64 need the same FLOPs on SmolLM2-135M.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from peftjax.interop.base import Base
from peftjax.peft import adapter_plus, houlsby, ia3, lora, parallel, pfeiffer
from peftjax.study.arms import Arm, size_of

METHODS = {
    "LoRA r16, all linear": (lora(rank=16, targets="all-linear"),),
    "LoRA r16, q and v": (lora(rank=16, targets=".*/(q|v)"),),
    "DoRA r16, all linear": (lora(rank=16, targets="all-linear", dora=True),),
    "Pfeiffer 64": (pfeiffer(size=64),),
    "Houlsby 64": (houlsby(size=64),),
    "parallel 64": (parallel(size=64),),
    "AdapterPlus 64": (adapter_plus(size=64),),
    "IA3": (ia3(),),
}
VARIANTS = ("DoRA r16, all linear", "AdapterPlus 64")  # of others in the list
FORMS = {"merged": "merged", "beside": "beside the base", "bank": "several in a batch"}
IN_BANK = 8  # adapters of a timed bank at most


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A method as it would be served.

    Attributes:
        method: its name.
        methods: as objects.
        form: one of FORMS.
        family: of the first method, as "lora" or "bottleneck".
        everywhere: whether it acts on attention and on the MLP.
        variant: whether it is a variant of another candidate.
        trainable: numbers that an adapter trains.
        stored_bytes: of these in float32.
        arm_bytes: of the parameters of its arm: the base with one adapter, or with this one merged.
        possible: None, or why the base or the form does not allow it.
    """

    method: str
    methods: tuple[Any, ...]
    form: str
    family: str
    everywhere: bool
    variant: bool
    trainable: int
    stored_bytes: int
    arm_bytes: int
    possible: str | None = None

    @property
    def name(self) -> str:
        return f"{self.method}, {FORMS[self.form]}"

    def arm(self, domains: int) -> Arm:
        """What is timed of it."""
        return Arm(self.name, self.methods, self.form, min(domains, IN_BANK) if self.form == "bank" else 1)


def candidates(base: Base, methods: Mapping[str, tuple[Any, ...]] = METHODS) -> list[Candidate]:
    """All methods in all forms, also those that cannot be, with the reason."""
    return [_candidate(base, name, specifications, form) for name, specifications in methods.items() for form in FORMS]


def _candidate(base: Base, name: str, methods: tuple[Any, ...], form: str) -> Candidate:
    about = {
        "method": name, "methods": methods, "form": form, "family": type(methods[0]).__name__, "everywhere": _everywhere(methods),
        "variant": name in VARIANTS,
    }
    arm = Arm(name, methods, form, 2 if form == "bank" else 1)
    try:
        size = size_of(arm, base.params, base.config)
    except (TypeError, ValueError) as error:
        return Candidate(**about, trainable=0, stored_bytes=0, arm_bytes=0, possible=_first(error))
    return Candidate(**about, trainable=size.trainable, stored_bytes=size.stored_bytes, arm_bytes=size.held_bytes)


def _everywhere(methods: tuple[Any, ...]) -> bool:
    """LoRAs by their targets, bottlenecks by their sites."""
    sites = {site for method in methods for site in getattr(method, "sites", ())}
    targets = [method.targets for method in methods if hasattr(method, "targets")]
    return {"attn_out", "mlp_out"} <= sites or "all-linear" in targets


def _first(error: Exception) -> str:
    """What an error says first, without what could be done instead and the path in front: that is the same for all paths and methods."""
    return re.sub(r"^[\w/]+(, [\w/]+)*: ", "", str(error).split(". ")[0].split("; merge(")[0])
