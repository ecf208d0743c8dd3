"""Two adapters of a library put together on rows that neither has seen, and on their own rows: nothing is trained.

    base | language | domain | stack: x -> language -> domain | average: the mean of what both do
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.interop.base import Base
from peftjax.interop.exchange.adapter import insert
from peftjax.interop.exchange.native import read_native
from peftjax.models.decoder import cut
from peftjax.peft.compose import compose
from peftjax.peft.composition import Average, Stack
from peftjax.peft.partition import nothing
from peftjax.study.checks import pairs
from peftjax.study.checks.library import adapters
from peftjax.study.checks.pairs import DOMAIN, LANGUAGE, Pair
from peftjax.train.inputs import prepare
from peftjax.train.startup import make_model
from peftjax.train.task import task_for

BASE, STACK, AVERAGE = "base", "stack", "average"


def trees(base: Base, library: Path, pair: Pair) -> dict[str, dict]:
    """Parameters by composition, of a base of one stack of layers."""
    folders = {LANGUAGE: library / pairs.language_adapter(pair), DOMAIN: library / pairs.domain_adapter(pair)}
    read = {name: read_native(folder) for name, folder in folders.items()}
    plain = cut(base.params, base.config, ())
    alone = {name: insert(plain, adapter, name, str(folders[name])) for name, adapter in read.items()}
    both = insert(alone[LANGUAGE], read[DOMAIN], DOMAIN, str(folders[DOMAIN]))
    return {BASE: plain} | alone | {STACK: compose(both, Stack(LANGUAGE, DOMAIN)), AVERAGE: compose(both, Average(LANGUAGE, DOMAIN))}


def measure(config: ConfigDict, folder: Path, base: Base, say: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """"rows": test items of each pair, seed and composition; "own": loss on the test rows of the adapters' own data by composition."""
    scores = Scores(config, base)
    rows, own = [], []
    for pair in pairs.pairs(config):
        known = pairs.library(config)
        for seed in config.seeds:
            say(f"together without training: {pair}, seed {seed}")
            found = trees(base, adapters(folder, seed), pair)
            for name, params in found.items():
                rows.append({"arm": name, "pair": str(pair), "seed": seed} | scores.items((pair.language,), (pair.domain,), params))
            for part, name in ((LANGUAGE, pairs.language_adapter(pair)), (DOMAIN, pairs.domain_adapter(pair))):
                losses = {form: scores.loss(*known[name], found[form]) for form in (BASE, part, STACK, AVERAGE)}
                own.append({"adapter": part, "pair": str(pair), "seed": seed, "alone": losses.pop(part)} | losses)
    return {"rows": rows, "own": own}


@dataclasses.dataclass
class Scores:
    """Losses of trees on test rows; the rows are read once."""

    config: ConfigDict
    base: Base
    evaluators: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def items(self, languages, domains, params: dict) -> dict[str, list]:
        """ids, groups, nll (nats) and tokens of the rows, by id."""
        evaluator = self._evaluator(languages, domains)
        found = evaluator.row_losses("test", nothing(params), params)
        of = {r.id: (r.group, float(n), int(t)) for r, n, t in zip(evaluator.held["test"].records, found.nll, found.tokens, strict=True)}
        ids = sorted(of)
        return {"ids": ids, "groups": [of[i][0] for i in ids], "nll": [round(of[i][1], 6) for i in ids], "tokens": [of[i][2] for i in ids]}

    def loss(self, languages, domains, params: dict) -> float:
        """Nats a token."""
        return self._evaluator(languages, domains).loss("test", nothing(params), params)

    def _evaluator(self, languages, domains) -> Any:
        if (languages, domains) not in self.evaluators:
            asked = pairs.on_rows(self.config, languages, domains)
            inputs = prepare(asked, self.base.tokenizer, task=task_for(asked, self.base.config))
            model = make_model(self.base.config, asked.model, ())
            self.evaluators[languages, domains] = inputs.task.evaluator(model, self.base.tokenizer, asked, inputs.held, lambda _: None)
        return self.evaluators[languages, domains]


def loss_of(row: Mapping[str, Any]) -> float:
    """Nats a token of a row of items."""
    return sum(row["nll"]) / sum(row["tokens"])
