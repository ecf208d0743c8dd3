"""What somebody needs: the questions that advice is given on, and which answers contradict each other.

    needs = Needs(domains=50, merging="forbidden", mixed=True, latency=1.10)
    require_sense(needs)                                    ValueError: says which demands cannot hold together, and why
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from peftjax.hints import did_you_mean
from peftjax.study.advice.conditions import Condition, all_hold
from peftjax.train.config import SMOLLM2

MERGING = ("allowed", "forbidden", "required")


@dataclasses.dataclass(frozen=True)
class Needs:
    """The answers; metadata hold the questions. Megabytes are 10^6 bytes; None is no demand."""

    base: str = dataclasses.field(default=SMOLLM2, metadata={"ask": "Base (directory, .gguf, pypi:..., hub id)?"})
    quantise: str | None = dataclasses.field(default=None, metadata={"ask": 'How is the base held ("nf4", "int4", ...; empty: dense)?'})
    data: str = dataclasses.field(default="", metadata={"ask": "Which data set of the studies is yours like (empty: all of them)?"})
    rows: int = dataclasses.field(default=1000, metadata={"ask": "How many training records has a domain?"})
    domains: int = dataclasses.field(default=1, metadata={"ask": "How many domains or tenants, each with an adapter of its own?"})
    merging: str = dataclasses.field(default="allowed", metadata={"ask": "May adapters be merged (allowed, forbidden, required)?"})
    apart: bool = dataclasses.field(default=False, metadata={"ask": "Must what a domain or tenant trained stay a thing of its own?"})
    revocable: bool = dataclasses.field(default=False, metadata={"ask": "Must an adapter be withdrawn from a running server at once?"})
    auditable: bool = dataclasses.field(default=False, metadata={"ask": "Must it be shown what an adapter did to a single answer?"})
    mixed: bool = dataclasses.field(default=False, metadata={"ask": "Do requests of several domains share a batch?"})
    combine: bool = dataclasses.field(default=False, metadata={"ask": "Do adapters of several domains act on one request together?"})
    latency: float | None = dataclasses.field(default=None, metadata={"ask": "How many times the base's time may a token take (1.05)?"})
    token_ms: float | None = dataclasses.field(default=None, metadata={"ask": "At most how many milliseconds may a token take?"})
    serving_mb: float | None = dataclasses.field(default=None, metadata={"ask": "How many MB may all parameters take when serving?"})
    training_mb: float | None = dataclasses.field(default=None, metadata={"ask": "How many MB may a training step take?"})
    batch: int = dataclasses.field(default=1, metadata={"ask": "How many requests are served together?"})
    prompt: int = dataclasses.field(default=128, metadata={"ask": "How many tokens has a prompt?"})
    train_batch: int = dataclasses.field(default=4, metadata={"ask": "How many rows has a training batch?"})
    train_length: int = dataclasses.field(default=64, metadata={"ask": "How many tokens has a training row?"})
    hardware: str = dataclasses.field(default="here", metadata={"ask": "On which hardware will it run (here: this machine)?"})

    def __post_init__(self):
        for field in ("rows", "domains", "batch", "prompt", "train_batch", "train_length"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        for field in ("latency", "token_ms", "serving_mb", "training_mb"):
            if getattr(self, field) is not None and not getattr(self, field) > 0:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be above 0, or absent where nothing is demanded")
        if self.merging not in MERGING:
            raise ValueError(f"merging is {self.merging!r}{did_you_mean(self.merging, MERGING)}; it may be {', '.join(MERGING)}")


@dataclasses.dataclass(frozen=True)
class Contradiction:
    """Demands that cannot hold together: when all conditions hold, and why they cannot."""

    when: tuple[Condition, ...]
    why: str


CONTRADICTIONS = (
    *(
        Contradiction((("merging", "=", "required"), (demand, "=", True)), why)
        for demand, why in {
            "apart": "what is folded into weights is no thing of its own any more",
            "revocable": "what is folded into weights cannot be taken out of them: W + BA - BA is not W in floating point",
            "auditable": "what an adapter did is measured by leaving it out, which merged weights do not allow",
            "mixed": "merged weights hold one domain, and a batch of several domains needs several",
            "combine": "merged weights hold what was folded in, whatever a request asks for",
        }.items()
    ),
    *(
        Contradiction(((demand, "=", True), ("domains", "=", 1)), f"{what} takes two domains at least")
        for demand, what in {"mixed": "a batch of several domains", "combine": "a request of several domains"}.items()
    ),
    Contradiction((("latency", "<", 1.0),), "no adapter makes a base faster: merged it takes the base's time, beside it more"),
    Contradiction(
        (("merging", "=", "forbidden"), ("latency", "<=", 1.0)), "what stands beside the base is computed, and takes time; only what is "
        "merged takes none",
    ),
    Contradiction((("mixed", "=", True), ("batch", "=", 1)), "one request at a time is no batch of several domains"),
)


def require_sense(needs: Needs) -> None:
    """Refuses demands that contradict each other.

    Raises:
        ValueError: all contradictions, each with the answers that make it and why.
    """
    found = [
        f"{' and '.join(f'{field} {getattr(needs, field)}' for field, *_ in one.when)}: {one.why}"
        for one in CONTRADICTIONS if all_hold(one.when, needs)
    ]
    if found:
        raise ValueError("these demands contradict each other; change one of each: " + "; ".join(found))


def needs_from_data(data: Mapping[str, Any]) -> Needs:
    """From JSON or flags, numbers and yes/no also as text.

    Raises:
        ValueError: a field that there is not, or a value that is none of its kind.
    """
    kinds = typing.get_type_hints(Needs)
    for field in data:
        if field not in kinds:
            raise ValueError(f"no question is called {field!r}{did_you_mean(field, kinds)}; there are {', '.join(kinds)}")
    return Needs(**{field: _read(field, kinds[field], value) for field, value in data.items()})


def _read(field: str, kind: Any, value: Any) -> Any:
    optional = isinstance(kind, types.UnionType)
    kind = next(one for one in typing.get_args(kind) if one is not types.NoneType) if optional else kind
    if value is None or (optional and value in ("", "none")):
        if optional:
            return None
        raise ValueError(f"{field} has no answer; it must be {_words(kind)}")
    if kind is bool:
        answers = {"yes": True, "y": True, "true": True, "no": False, "n": False, "false": False}
        answer = answers.get(str(value).lower())
        if answer is None:
            raise ValueError(f"{field} is {value!r}; it must be yes or no")
        return answer
    try:
        read = kind(value)
    except (TypeError, ValueError):
        read = None
    if read is None or isinstance(value, bool) or (kind is int and read != float(value)):
        raise ValueError(f"{field} is {value!r}; it must be {_words(kind)}")
    return read


def _words(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "text", bool: "yes or no"}[kind]
