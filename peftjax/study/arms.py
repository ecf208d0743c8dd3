"""Arms: what is timed side by side. A base with methods on it, in one of the forms in which adapters are served.

    Arm("base")                                              the base as it is
    Arm("LoRA", (lora(rank=16),))                            beside the base: one adapter, the base untouched
    Arm("LoRA merged", (lora(rank=16),), form="merged")      folded into dense weights, a copy of the base for each adapter
    Arm("8 LoRAs", (lora(rank=16),), form="bank", adapters=8)   a base with different adapters for the rows of a batch
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from peftjax.hints import did_you_mean
from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import cut
from peftjax.peft.attach import attach, cut_points
from peftjax.peft.bank import choose
from peftjax.peft.merge import merge
from peftjax.peft.partition import partition, size
from peftjax.peft.spec import from_data, to_data
from peftjax.peft.stacking import stack_adapters

FORMS = ("beside", "merged", "bank")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the arms.

    Attributes:
        name: in tables and pictures.
        methods: of `peftjax.peft`; none is the base.
        form: one of FORMS.
        adapters: of a bank, how many different ones lie in it.
    """

    name: str
    methods: tuple[Any, ...] = ()
    form: str = "beside"
    adapters: int = 1

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"arm {self.name!r} has the form {self.form!r}{did_you_mean(self.form, FORMS)}; forms are {', '.join(FORMS)}")
        if not self.methods and self.form != "beside":
            raise ValueError(f"arm {self.name!r} has no methods, so nothing can be {self.form}")
        if self.adapters < 1 or (self.form != "bank" and self.adapters != 1):
            raise ValueError(f"arm {self.name!r} has {self.adapters} adapters; a bank has one or more, the form {self.form} has one")

    def to_data(self) -> dict[str, Any]:
        """As plain data, for a config."""
        return {"name": self.name, "methods": [to_data(method) for method in self.methods], "form": self.form, "adapters": self.adapters}

    def segments(self, config: DecoderConfig) -> tuple[int, ...]:
        """Lengths of the scanned segments that the methods ask for."""
        return cut_points(list(self.methods), config.layers)

    def params(self, base: dict) -> dict:
        """Parameters of the arm on those of a base (cut as `segments` says), whose arrays it shares where it can. Initial values: times do
        not depend on them.

        Raises:
            TypeError: methods that cannot be merged, or lie in a bank.
            ValueError: methods that do not fit the base.
        """
        if not self.methods:
            return base
        trees = [attach(base, self.methods, jax.random.key(number)) for number in range(self.adapters)]
        if self.form == "bank":
            return stack_adapters(base, trees)
        return merge(trees[0]) if self.form == "merged" else trees[0]

    def rows(self, params: dict, batch: int, gather: bool) -> dict:
        """`params`, of a bank with the adapters of a batch chosen: one for each row in turn; `gather` as `peftjax.peft.bank.choose`."""
        return choose(params, np.arange(batch) % self.adapters, gather=gather) if self.form == "bank" else params


def arm_from_data(data: Mapping[str, Any]) -> Arm:
    """The arm that some data describe, as `Arm.to_data` gives them; what is left out has its default.

    Raises:
        ValueError: an unknown field, or one that cannot be.
    """
    known = [field.name for field in dataclasses.fields(Arm)]
    for field in data:
        if field not in known:
            raise ValueError(f"an arm has no field {field!r}{did_you_mean(field, known)}; fields are {', '.join(known)}")
    methods = tuple(from_data(method) for method in data.get("methods", ()))
    return Arm(**{**data, "methods": methods})


@dataclasses.dataclass(frozen=True)
class Size:
    """What an arm holds.

    Attributes:
        trainable: numbers that one adapter of it trains.
        stored_bytes: of these in float32, as a file of one adapter holds them.
        held_bytes: of all the arm's parameters in memory, the base's among them.
        merges: whether its methods fold into dense weights; None of the base.
    """

    trainable: int
    stored_bytes: int
    held_bytes: int
    merges: bool | None


def size_of(arm: Arm, params: dict, config: DecoderConfig) -> Size:
    """Sizes of an arm by shapes alone; nothing is allocated. Errors as of `Arm.params`."""
    base = jax.eval_shape(lambda: cut(params, config, arm.segments(config)))
    if not arm.methods:
        return Size(0, 0, size(base)[1], None)
    tree = jax.eval_shape(lambda params: attach(params, arm.methods, jax.random.key(0)), base)
    trainable, stored = size(partition(tree)[0])
    held = size(jax.eval_shape(arm.params, base))[1]
    return Size(trainable, stored, held, merges(tree))


def merges(params: dict) -> bool:
    """Whether the adapters of a tree (shapes suffice) fold into dense weights."""
    try:
        jax.eval_shape(merge, params)
    except TypeError:
        return False
    return True


def names(arms: Sequence[Arm]) -> list[str]:
    """Their names.

    Raises:
        ValueError: no arm, two of one name, or no arm without methods to compare with.
    """
    found = [arm.name for arm in arms]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise ValueError(f"two arms are called {', '.join(map(repr, twice))}; rows of a table need names of their own")
    if not any(not arm.methods for arm in arms):
        raise ValueError(f"no arm is the base, which the others are compared with; arms are {', '.join(found) or 'none'}")
    return found
