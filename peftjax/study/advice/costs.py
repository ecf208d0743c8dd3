"""What candidates cost on this machine and base: measured in seconds, not hours, and kept for the next question.

    found = costs(base, remaining, needs)        {"LoRA r16, all linear, beside the base": Cost(token=Ratio(1.05, ...), ...)}

Times are those of `peftjax.study.latency`, layers scanned (which compiles in a second where written out it takes ten). They are kept in the
cache folder (`peftjax.study.latency_kept`): the same question on the same base and machine is answered at once.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence

from peftjax.cache import cache_dir
from peftjax.interop.base import Base
from peftjax.peft.partition import size
from peftjax.study.advice.candidates import Candidate
from peftjax.study.advice.needs import Needs
from peftjax.study.arms import Arm
from peftjax.study.latency import Latency
from peftjax.study.latency_kept import measured
from peftjax.study.programs import Case
from peftjax.study.timing import Ratio

ROUNDS = 20
BUDGET_S = 10.0  # of each case


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a candidate. Ratios are None where they are of the thing compared with itself.

    Attributes:
        token, prompt: times the base's, of making a token and of reading a prompt.
        token_s, prompt_s: medians, in seconds.
        step: of training, times that of the first method that was timed; `step_s` its median, in seconds.
        training_bytes: arguments and temporaries of the compiled step.
        serving_bytes: parameters in memory for all domains.
        stored_bytes: of one adapter.
    """

    token: Ratio
    prompt: Ratio
    token_s: float
    prompt_s: float
    step: Ratio | None
    step_s: float
    training_bytes: int
    serving_bytes: int
    stored_bytes: int


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of all candidates, by name; the base's own seconds of a token and a prompt; the measurements behind them; and whether they were kept
    from before."""

    of: dict[str, Cost]
    token_s: float
    prompt_s: float
    serving: Latency
    training: Latency
    kept: bool


def serving_bytes(candidate: Candidate, base_bytes: int, domains: int) -> int:
    """Parameters in memory. Merged: one set of weights for each domain; else one base, and an adapter for each domain."""
    if candidate.form == "merged":
        return domains * candidate.arm_bytes
    return base_bytes + domains * candidate.stored_bytes


def costs(
    base: Base, remaining: Sequence[Candidate], needs: Needs, rounds: int = ROUNDS, budget_s: float = BUDGET_S, sittings: int = 1,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Costs:
    """Measures candidates, or reads what was measured of the same before. All of them at once, so that they are of the same minutes."""
    token, prompt = Case("decode", needs.batch), Case("forward", needs.batch, needs.prompt)
    step = Case("train", needs.train_batch, needs.train_length)
    arms = [Arm("base"), *(candidate.arm(needs.domains) for candidate in remaining)]
    trained = {candidate.method: Arm(candidate.method, candidate.methods) for candidate in remaining}
    how = {"rounds": rounds, "budget_s": budget_s, "unroll": False, "sittings": sittings, "say": say}
    serving, kept = measured(base, arms, [prompt, token], cache_dir("latency"), **how)
    training, trained_before = measured(base, [Arm("base"), *trained.values()], [step], cache_dir("latency"), **how)
    base_bytes, found = size(base.params)[1], {}
    for candidate in remaining:
        tokens, prompts = serving.row(candidate.name, token), serving.row(candidate.name, prompt)
        steps = training.row(candidate.method, step)
        found[candidate.name] = Cost(
            tokens.over, prompts.over, tokens.seconds.median, prompts.seconds.median, steps.over, steps.seconds.median,
            steps.temporary_bytes + steps.argument_bytes, serving_bytes(candidate, base_bytes, needs.domains), candidate.stored_bytes,
        )
    bare = [serving.row("base", case).seconds.median for case in (token, prompt)]
    return Costs(found, *bare, serving, training, kept and trained_before)
