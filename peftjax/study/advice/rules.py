"""The rules as data: when the needs are such, candidates of such a trait are left out, costs are bounded, or some are preferred.

| effect  | what it does |
|---|---|
| Exclude | leaves out candidates of which the condition holds |
| Bound   | leaves out candidates whose measured cost is above a number of the needs; where the interval holds the number, it says so |
| Prefer  | decides among candidates that neither costs nor stored studies tell apart; it never overrules them |
| Note    | is told |

Sources are papers (arXiv numbers) with a mark of how far they are to be trusted here: [measured] in this repository, [published] elsewhere,
with other bases and data, [by construction] where nothing needs to be measured.
"""

import dataclasses

from peftjax.study.advice.conditions import Condition


@dataclasses.dataclass(frozen=True)
class Exclude:
    """Candidates of which all `of` hold."""

    of: tuple[Condition, ...]


@dataclasses.dataclass(frozen=True)
class Bound:
    """A cost, named after a field of `peftjax.study.advice.costs.Cost`, at most the number in a field of the needs, times `unit`."""

    cost: str
    field: str
    unit: float = 1.0


@dataclasses.dataclass(frozen=True)
class Prefer:
    """Candidates of which all `of` hold."""

    of: tuple[Condition, ...]


@dataclasses.dataclass(frozen=True)
class Note:
    """Nothing but its reason."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule: name, when it holds of the needs, what it does, why, and whence that is known."""

    name: str
    when: tuple[Condition, ...]
    effect: Exclude | Bound | Prefer | Note
    why: str
    source: str


MERGED, UNMERGED = (("form", "=", "merged"),), (("form", "!=", "merged"),)
BANK, ONE_AT_A_TIME = (("form", "=", "bank"),), (("form", "!=", "bank"),)

RULES = (
    Rule("no merging", (("merging", "=", "forbidden"),), Exclude(MERGED), "merging is forbidden", "the demand"),
    Rule("merging only", (("merging", "=", "required"),), Exclude(UNMERGED), "merging is required", "the demand"),
    Rule(
        "kept apart", (("apart", "=", True),), Exclude(MERGED), "merged weights no longer hold what a domain trained as a thing of its own",
        "by construction",
    ),
    Rule(
        "revocable", (("revocable", "=", True),), Exclude(MERGED), "a merged adapter is withdrawn by loading other weights, not by leaving "
        "it out: W + BA - BA is not W in floating point", "by construction; dLoRA (OSDI 2024) keeps the base for it [published]",
    ),
    Rule(
        "auditable", (("auditable", "=", True),), Exclude(MERGED), "what an adapter did to an answer is measured by computing it without, "
        "which merged weights do not allow", "by construction",
    ),
    Rule(
        "one batch for all", (("mixed", "=", True),), Exclude(ONE_AT_A_TIME), "a batch holds requests of several domains, and this form "
        "holds one at a time", "Punica (2310.18547), S-LoRA (2311.03285) [published]",
    ),
    Rule(
        "no mixed batches", (("mixed", "=", False),), Exclude(BANK), "no batch holds requests of several domains, so that one adapter at a "
        "time does with less", "by construction",
    ),
    Rule(
        "combined", (("combine", "=", True),), Exclude(MERGED), "adapters that a request chooses must be there beside the base",
        "by construction",
    ),
    Rule(
        "time of a token", (("latency", "given", True),), Bound("token", "latency"), "a token may take so much of the base's time",
        "the demand",
    ),
    Rule(
        "milliseconds of a token", (("token_ms", "given", True),), Bound("token_s", "token_ms", 1e-3), "a token may take so long",
        "the demand",
    ),
    Rule(
        "memory when serving", (("serving_mb", "given", True),), Bound("serving_bytes", "serving_mb", 1e6), "so much memory is there for "
        "parameters; merged, each domain has a base of its own", "the demand",
    ),
    Rule(
        "memory when training", (("training_mb", "given", True),), Bound("training_bytes", "training_mb", 1e6), "so much memory is there "
        "for a training step", "the demand",
    ),
    Rule(
        "merged costs nothing", (("merging", "!=", "forbidden"), ("domains", "=", 1)), Prefer(MERGED), "with one domain a merged adapter "
        "takes the base's time and memory", "2106.09685 [published]; README, Latency [measured]",
    ),
    Rule(
        "quantised base", (("quantise", "given", True),), Prefer(UNMERGED), "merged weights are dense again, and quantised anew they lose "
        "small updates between their levels", "2305.14314 [published]; README, Quantised bases [measured]",
    ),
    Rule(
        "few records", (("rows", "<", 1000),), Prefer((("trainable", "<", 2_000_000),)), "fewer trained numbers, trained longer, were more "
        "stable where data were few", "2202.07962 [published]",
    ),
    Rule(
        "many records", (("rows", ">=", 1000),), Prefer((("everywhere", "=", True),)), "adapting MLP and attention was as good as or "
        "better than attention alone at matched numbers", "2405.09673, LoRA Without Regret (2025) [published]; not settled here",
    ),
    Rule(
        "variants tie", (), Prefer((("variant", "=", False),)), "tuned variants lie within 1-2 % of what they vary: the plainer one is "
        "taken where nothing else decides", "2602.04998, 2602.09492, 2601.22708 [published]",
    ),
    Rule(
        "combining", (("combine", "=", True),), Note(), "whether fused bottlenecks or summed LoRAs combine better is open: fusion won "
        "where data were few (2005.00247), joined LoRAs on word problems (2410.13025), and random adapters did as well as recycled ones "
        "(2602.12323): compare with an arm of random adapters", "[published], sources disagree",
    ),
    Rule(
        "other hardware", (("hardware", "!=", "here"),), Note(), "costs were measured on this machine and are not another's; take bytes as "
        "they are, and times as an order only, or ask there", "by construction",
    ),
)
