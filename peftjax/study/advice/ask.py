"""From questions to an answer in a folder: asks what is not given, measures, reads studies, decides, writes.

    advise(Needs(domains=50, merging="forbidden"), studies=["runs/study"], folder=Path("runs/advice"))

    advice.md, advice.png, advice.json, latency.md        in the folder
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.files import replacing
from peftjax.interop.base import Base, load_base
from peftjax.models.config import DecoderConfig
from peftjax.peft.partition import size
from peftjax.study.advice.candidates import METHODS, candidates
from peftjax.study.advice.costs import BUDGET_S, ROUNDS, costs
from peftjax.study.advice.decide import Advice, by_rules, decide, relaxed
from peftjax.study.advice.evidence import Evidence, nearest
from peftjax.study.advice.needs import Needs, needs_from_data, require_sense
from peftjax.study.advice.plot import write_plot
from peftjax.study.advice.report import as_data, as_markdown
from peftjax.study.latency_table import as_table


def ask(given: Mapping[str, Any], read: Callable[[str], str] = input, say: Callable[[str], None] = print) -> Needs:
    """Asks every question whose answer is not given; an empty answer is the default, a wrong one is asked for again."""
    answers = dict(given)
    needs_from_data(answers)
    for field in dataclasses.fields(Needs):
        while field.name not in given:
            default = _word(field.default)
            answer = read(f"{field.metadata['ask']} [{default}] ").strip()
            try:
                needs_from_data({field.name: answer} if answer else {})
            except ValueError as error:
                say(str(error))
                continue
            answers |= {field.name: answer} if answer else {}
            break
    return needs_from_data(answers)


def _word(default: Any) -> Any:
    return {True: "yes", False: "no"}[default] if isinstance(default, bool) else "no demand" if default in (None, "") else default


def require_room(needs: Needs, base: Base) -> None:
    """Refuses less memory for serving than the base alone takes.

    Raises:
        ValueError: both numbers.
    """
    held = size(base.params)[1]
    if needs.serving_mb is not None and needs.serving_mb * 1e6 < held:
        raise ValueError(
            f"serving_mb is {needs.serving_mb:g}, and the base alone takes {held / 1e6:.4g} MB: hold it quantised, or choose a smaller base"
        )


def advise(
    needs: Needs, evidence: Sequence[Evidence] = (), base: Base | None = None, methods: Mapping[str, tuple[Any, ...]] = METHODS,
    rounds: int = ROUNDS, budget_s: float = BUDGET_S, sittings: int = 1, say: Callable[[str], None] = print,
) -> Advice:
    """The advice. Only what the rules leave is measured.

    Args:
        evidence: from `peftjax.study.advice.studies.of_studies`.
        base: loaded; else `needs.base` is.
        methods: name -> methods, to choose from.
        rounds, budget_s, sittings: of each case that is timed, see `peftjax.study.latency_kept.measured`.

    Raises:
        TypeError: the base is an encoder.
        ValueError: contradictory demands, less room than the base takes, demands that no candidate meets, or data that no study has.
    """
    require_sense(needs)
    base = load_base(needs.base, quantise=needs.quantise) if base is None else base
    if not isinstance(base.config, DecoderConfig):
        raise TypeError(f"{base.uri} is an encoder; advice is on decoders, whose latency is measured")
    require_room(needs, base)
    known = candidates(base, methods)
    near = nearest(evidence, needs, known, base.fingerprint)
    remaining, left_out = by_rules(known, needs)
    if not remaining:
        raise ValueError("no candidate meets these demands: " + "; ".join(_nothing(needs, known, left_out)))
    return decide(needs, known, costs(base, remaining, needs, rounds, budget_s, sittings, say), near)


def write(advice: Advice, folder: Path) -> Path:
    """Writes the four files; the path of the Markdown."""
    picture = write_plot(advice, folder / "advice.png")
    texts = {
        "advice.md": as_markdown(advice, picture.name if picture else None), "advice.json": json.dumps(as_data(advice), indent=1) + "\n",
    }
    if advice.costs is not None:
        texts["latency.md"] = f"{as_table(advice.costs.serving)}\n\n{as_table(advice.costs.training)}\n"
    for name, text in texts.items():
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return folder / "advice.md"


def _nothing(needs: Needs, known: Sequence[Any], left_out: Mapping[str, tuple[str, ...]]) -> list[str]:
    """What would have to give way, or else why each is left out."""
    found = [f"without the demand {rule!r} {count} would remain" for rule, count in relaxed(needs, known).items()]
    return found or [f"{name}: {', '.join(reasons)}" for name, reasons in left_out.items()]
