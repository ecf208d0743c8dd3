"""What candidates cost on this machine and base: measured in seconds, not hours, and kept for the next question.

    found = costs(base, remaining, needs)        {"LoRA r16, all linear, beside the base": Cost(token=Ratio(1.05, ...), ...)}

Times are those of `peftjax.study.latency`, layers scanned (which compiles in a second where written out it takes ten). They are kept in the
cache folder (`peftjax.study.latency_kept`): the same question on the same base and machine is answered at once. Two things are not timed
more often than they tell something new:

    one program       run candidates whose parameters are alike in all but values, as merged ones: the first is timed, and stands for them
    long prompts      of more than PROMPT_TOKENS in all are timed on fewer rows on a CPU (on two at least), which the answer says
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence

import jax

from peftjax.cache import cache_dir
from peftjax.interop.base import Base
from peftjax.models.decoder import cut
from peftjax.peft.partition import size
from peftjax.study.advice.candidates import Candidate
from peftjax.study.advice.needs import Needs
from peftjax.study.arms import Arm
from peftjax.study.latency import Latency
from peftjax.study.latency_kept import measured
from peftjax.study.programs import Case
from peftjax.study.timing import Ratio

ROUNDS = 20
PROMPT_TOKENS = 256  # of all rows together: a CPU multiplies so many rows as fast as more, an accelerator does not
BUDGET_S = 10.0  # of each case


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a candidate. Ratios are None where they are of the thing compared with itself.

    Attributes:
        token, prompt: times the base's, of making a token and of reading a prompt.
        token_s, prompt_s: medians, in seconds; of the prompts that are timed, see `prompts_timed`.
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
    """Of all candidates, by name; the base's own seconds of a token and a prompt; the measurements behind them; whether they were kept
    from before; and of candidates that were not timed when serving, the one that was for them."""

    of: dict[str, Cost]
    token_s: float
    prompt_s: float
    serving: Latency
    training: Latency
    kept: bool
    timed_by: dict[str, str] = dataclasses.field(default_factory=dict)


def serving_bytes(candidate: Candidate, base_bytes: int, domains: int) -> int:
    """Parameters in memory. Merged: one set of weights for each domain; else one base, and an adapter for each domain."""
    if candidate.form == "merged":
        return domains * candidate.arm_bytes
    return base_bytes + domains * candidate.stored_bytes


def prompts_timed(needs: Needs) -> Case:
    """The prompts that are timed: as many rows as are served, or as PROMPT_TOKENS take."""
    most = max(2, PROMPT_TOKENS // needs.prompt) if jax.default_backend() == "cpu" else needs.batch
    return Case("forward", min(needs.batch, most), needs.prompt)


def standing_for(base: Base, arms: Sequence[Arm]) -> dict[str, str]:
    """Arm -> the first whose parameters have the same structure, shapes and dtypes: both run one compiled program."""
    first: dict[tuple, str] = {}
    return {arm.name: first.setdefault(_program_of(base, arm), arm.name) for arm in arms}


def _program_of(base: Base, arm: Arm) -> tuple:
    tree = jax.eval_shape(lambda params: arm.params(cut(params, base.config, arm.segments(base.config))), base.params)
    return jax.tree.structure(tree), tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))


def costs(
    base: Base, remaining: Sequence[Candidate], needs: Needs, rounds: int = ROUNDS, budget_s: float = BUDGET_S, sittings: int = 1,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Costs:
    """Measures candidates, or reads what was measured of the same before. All of them at once, so that they are of the same minutes."""
    token, prompt = Case("decode", needs.batch), prompts_timed(needs)
    step = Case("train", needs.train_batch, needs.train_length)
    of = {candidate.name: candidate.arm(needs.domains) for candidate in remaining}
    timed = standing_for(base, list(of.values()))
    arms = [Arm("base"), *(arm for name, arm in of.items() if timed[name] == name)]
    trained = {candidate.method: Arm(candidate.method, candidate.methods) for candidate in remaining}
    how = {"rounds": rounds, "budget_s": budget_s, "unroll": False, "sittings": sittings, "say": say}
    serving, kept = measured(base, arms, [prompt, token], cache_dir("latency"), **how)
    training, trained_before = measured(base, [Arm("base"), *trained.values()], [step], cache_dir("latency"), **how)
    base_bytes, found = size(base.params)[1], {}
    for candidate in remaining:
        tokens, prompts = (serving.row(timed[candidate.name], case) for case in (token, prompt))
        steps = training.row(candidate.method, step)
        found[candidate.name] = Cost(
            tokens.over, prompts.over, tokens.seconds.median, prompts.seconds.median, steps.over, steps.seconds.median,
            steps.temporary_bytes + steps.argument_bytes, serving_bytes(candidate, base_bytes, needs.domains), candidate.stored_bytes,
        )
    bare = [serving.row("base", case).seconds.median for case in (token, prompt)]
    timed_by = {name: first for name, first in timed.items() if name != first}
    return Costs(found, *bare, serving, training, kept and trained_before, timed_by)
