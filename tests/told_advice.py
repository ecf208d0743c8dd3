"""Candidates, costs and evidence made by hand: what the advice rests on, with numbers that a test chooses."""

import dataclasses

from peftjax.peft import houlsby, ia3, lora, pfeiffer
from peftjax.study.advice.candidates import FORMS, Candidate
from peftjax.study.advice.costs import Cost, Costs, serving_bytes
from peftjax.study.advice.evidence import Evidence, candidate_key
from peftjax.study.arms import Size
from peftjax.study.latency import Latency
from peftjax.study.timing import Ratio

BASE_BYTES = 500_000_000
METHODS = {
    "LoRA": ((lora(rank=16),), "lora", True, 5_000_000), "Houlsby": ((houlsby(size=64),), "bottleneck", True, 4_500_000),
    "Pfeiffer": ((pfeiffer(size=64),), "bottleneck", False, 2_200_000), "IA3": ((ia3(),), "ia3", False, 60_000),
}
MERGES, IN_A_BANK = ("LoRA", "IA3"), ("LoRA", "Houlsby", "Pfeiffer")
TOKEN = {"LoRA": 1.10, "Houlsby": 1.05, "Pfeiffer": 1.02, "IA3": 1.01}  # times the base's, beside it


def candidates(*names: str) -> list[Candidate]:
    """Of these methods (default: all) in all forms, as the real ones are."""
    found = []
    for name in names or METHODS:
        methods, family, everywhere, count = METHODS[name]
        for form in FORMS:
            possible = {"merged": name in MERGES, "bank": name in IN_A_BANK}.get(form, True)
            held = BASE_BYTES + (0 if form == "merged" else 4 * count)
            found.append(Candidate(
                name, methods, form, family, everywhere, False, count, 4 * count, held, None if possible else f"{name} cannot be {form}"
            ))
    return found


def ratio(value: float, half: float = 0.005) -> Ratio:
    """With an interval of that half width."""
    return Ratio(value, value - half, value + half)


def costs(remaining: list[Candidate], domains: int = 1, token: dict[str, Ratio] | None = None) -> Costs:
    """Merged takes the base's time; a bank 5 % more than an adapter alone."""
    of = {}
    for one in remaining:
        times = 1.0 if one.form == "merged" else TOKEN[one.method] + (0.05 if one.form == "bank" else 0)
        shown = (token or {}).get(one.method, ratio(times))
        held = serving_bytes(one, BASE_BYTES, domains)
        of[one.name] = Cost(shown, ratio(times), 0.03 * shown.value, 0.3 * times, None, 0.5, 10**9, held, one.stored_bytes)
    about = {"processor": "a processor", "cores": 2, "devices": "1 x cpu", "jax": "0"}
    latency = Latency("base", "f", None, False, {"base": Size(0, 0, BASE_BYTES, None)}, [], {}, about, (0.1, 0.1))
    return Costs(of, 0.03, 0.3, latency, latency, False)


def evidence(means: dict[str, float], tied: tuple[tuple[str, ...], ...] = (), **changes) -> list[Evidence]:
    """One comparison, in which the methods of a group are tied."""
    found = []
    for name, mean in means.items():
        with_it = {other for group in tied if name in group for other in group} - {name}
        key = candidate_key(next(one for one in candidates(name)))
        one = Evidence("runs/study", ("icd", "small", 1000), name, key, 10_000, "base", "f", "accuracy", mean, mean - 0.02, mean + 0.02, 5,
                       tuple(sorted(with_it)))
        found.append(dataclasses.replace(one, **changes))
    return found
