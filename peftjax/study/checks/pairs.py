"""Domains x languages with pairs held out: what each adapter of the library is trained on, and the runs on a pair.

               de       fr      en      es
    switch   (pair)      x       x       x       domain adapter "switch": this row without its pair
    timer       x     (pair)     x       x
    query       x        x    (pair)     x
    media       x        x       x    (pair)     language adapter "es": this column without its pair

Each domain and each language is in one pair, so that no adapter of the library has seen the pair that it is used for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from peftjax.peft.fusion import fusion
from peftjax.train.config import loaded, methods
from peftjax.train.points import with_point

LANGUAGE, DOMAIN = "language", "domain"  # names of the two adapters in a tree, the language below the domain
LORA, FUSION, RANDOM = "LoRA", "fusion", "fusion of random"


class Pair(NamedTuple):
    """A domain and a language whose rows no adapter of the library has seen."""

    domain: str
    language: str

    def __str__(self) -> str:
        return f"{self.domain}-{self.language}"


class PairRun(NamedTuple):
    """One run on the rows of a pair."""

    arm: str
    size: int
    pair: Pair
    rate: float
    seed: int

    @property
    def folder(self) -> str:
        """Of the run."""
        return f"{self.arm.replace(' ', '_')}-{self.size}-{self.pair}-lr{self.rate:g}-seed{self.seed}"


def pairs(config: ConfigDict) -> list[Pair]:
    """Those of a config.

    Raises:
        ValueError: fewer than two, or a domain or language that is in several.
    """
    found = [Pair(*one) for one in config.pairs]
    for what, names in (("domain", [one.domain for one in found]), ("language", [one.language for one in found])):
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"config.pairs has the {what}s {', '.join(names)}; there must be two or more, each of them once")
    return found


def library(config: ConfigDict) -> dict[str, tuple[Sequence[str], Sequence[str]]]:
    """Name of each adapter of the library -> (languages, domains) of its rows."""
    found: dict[str, tuple[Sequence[str], Sequence[str]]] = {}
    for pair in pairs(config):
        others = [one for one in pairs(config) if one != pair]
        found[language_adapter(pair)] = (pair.language,), tuple(one.domain for one in others)
        found[domain_adapter(pair)] = tuple(one.language for one in others), (pair.domain,)
    return found


def language_adapter(pair: Pair) -> str:
    """The name in the library."""
    return f"language-{pair.language}"


def domain_adapter(pair: Pair) -> str:
    """The name in the library."""
    return f"domain-{pair.domain}"


def on_rows(config: ConfigDict, languages: Sequence[str], domains: Sequence[str]) -> ConfigDict:
    """The run's config on these rows."""
    options = config.run.data.options.to_dict() | {"languages": tuple(languages), "domains": tuple(domains)}
    return with_point(config.run.copy_and_resolve_references(), {"data.options": options})


def library_config(config: ConfigDict, name: str, seed: int) -> ConfigDict:
    """The run of an adapter of the library."""
    own = config.library
    return with_point(on_rows(config, *library(config)[name]), {
        "peft": [method.to_dict() for method in own.peft], "train.steps": own.steps, "optimizer.learning_rate": own.rate,
        "train.seed": seed,
    })


def pair_config(config: ConfigDict, run: PairRun, adapters: Path) -> ConfigDict:
    """The run on a pair; `adapters` holds the library of its seed, and its random copies in the folder `random`."""
    own, point = config.lora, {"data.rows": run.size, "optimizer.learning_rate": run.rate, "train.seed": run.seed}
    if run.arm != LORA:
        place = adapters / "random" if run.arm == RANDOM else adapters
        both = {LANGUAGE: language_adapter(run.pair), DOMAIN: domain_adapter(run.pair)}
        own = methods(fusion(of=(LANGUAGE, DOMAIN)))
        point["adapters"] = [loaded(str(place / folder), name, train=False) for name, folder in both.items()]
        point["compose"] = {"fuse": [LANGUAGE, DOMAIN]}
    point["peft"] = [method.to_dict() for method in own]
    return with_point(on_rows(config, (run.pair.language,), (run.pair.domain,)), point)
