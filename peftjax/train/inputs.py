"""The data of a run: records -> splits -> stored sets -> tokens -> batches, as a config says."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from absl import logging

from peftjax.data.batches import Batches
from peftjax.data.records import Record, content_hash
from peftjax.data.sources import DATASETS, load_records
from peftjax.data.splits import refuse_overlap, split_records
from peftjax.data.store import store
from peftjax.data.template import Template
from peftjax.train.config import composition
from peftjax.train.held import Held
from peftjax.train.routes import Routes, routes_of, with_routes
from peftjax.train.task import NEXT_TOKEN, Task


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything that training and evaluation read.

    Attributes:
        train: batches by step.
        held: "validation", "test" and "general" where there are any rows.
        task: with what it learnt from the training records.
        report: counts of records, rows, truncated rows and broken rows, by split.
        fingerprint: hash of all records of the task.
    """

    train: Batches
    held: dict[str, Held]
    report: dict[str, Any]
    fingerprint: str
    task: Task


def prepare(config: Any, tokenizer: Any, process: tuple[int, int] = (0, 1), task: Task = NEXT_TOKEN) -> Inputs:
    """Reads, splits, stores and tokenises the data of `config`.

    Args:
        config: the whole config of a run.
        tokenizer: of the base.
        process: (index, count) of this host.
        task: see `peftjax.train.task`.

    Raises:
        ValueError: an empty training split, records on both sides of a split, broken rows.
    """
    data, options = config.data, config.data.options.to_dict()
    if data.name not in DATASETS:
        options["on_bad_row"] = data.on_bad_row
    records, report = load_records(data.name, **options)
    splits = {name: rows for name, rows in split_records(records, data.fractions.to_dict(), salt=data.salt).items() if rows}
    if "train" not in splits:
        raise ValueError(f"no group of {data.name} falls into the training split; fractions are {data.fractions.to_dict()}")
    for name in data.fractions:
        if name not in splits:
            logging.warning("%s: split %r is empty (its %d groups are too few for a fraction of %g): nothing is measured on it",
                            data.name, name, len({r.group for r in records}), data.fractions[name])
    refuse_overlap(splits["train"], [record for name, rows in splits.items() if name != "train" for record in rows])
    fingerprint = content_hash(records)
    sources = store(splits, data.name)
    template = Template(prompt=data.prompt, response=data.response, chat=data.chat)
    task = task.learn(splits["train"], template)
    routes = routes_of(composition(config))
    chosen = pick(sources["train"], data.rows) if data.rows else sources["train"]
    train = with_routes(task.rows(chosen, tokenizer, template, data.length), chosen, routes)
    held = {
        name: hold(pick(sources[name], config.eval.rows), task, tokenizer, template, data.length, routes)
        for name in ("validation", "test") if name in sources
    }
    general = config.eval.general
    if general.name and task.general:
        text, _ = load_records(general.name, **general.options.to_dict())
        held["general"] = hold(pick(text, general.rows), task, tokenizer, Template(), general.length, routes, strict=False)
    counts = {name: {"records": len(rows), "groups": len({r.group for r in rows})} for name, rows in splits.items()}
    if data.rows:
        counts["train"] |= {"records": len(chosen), "groups": len({record.group for record in chosen})}
    counts["train"] |= train.report
    for name, rows in held.items():
        counts[name] = counts.get(name, {}) | {f"held {what}": count for what, count in rows.tokens.report.items()}
    batches = _batches(train, task, config, process)
    counts["train"] |= batches.report
    return Inputs(batches, held, {"splits": counts, "source": report}, fingerprint, task)


def in_order(inputs: Inputs, config: Any, process: tuple[int, int] = (0, 1)) -> Inputs:
    """The same inputs in the order of another `config.train.seed`; all else in the config that has to do with data must be the same."""
    batches, splits = _batches(inputs.train.rows, inputs.task, config, process), inputs.report["splits"]
    splits = splits | {"train": splits["train"] | batches.report}
    return dataclasses.replace(inputs, train=batches, report=inputs.report | {"splits": splits})


def _batches(rows: Any, task: Task, config: Any, process: tuple[int, int]) -> Batches:
    data = config.data
    return Batches(rows, config.train.batch_size, data.length, config.train.seed, layout=data.layout,
                   share=data.share_prefixes if task.causal else "off", process_index=process[0], process_count=process[1])


def pick(records: Sequence[Record], count: int) -> list[Record]:
    """`count` records by the hash of their id: the same ones whatever the order, and more of them extend the choice; 0 is all."""
    order = sorted(records, key=lambda record: hashlib.sha256(record.id.encode()).digest())
    return order[:count] if count else order


def hold(
    records: list[Record], task: Task, tokenizer: Any, template: Template, length: int, routes: Routes = {}, strict: bool = True,  # noqa: B006
) -> Held:
    """Records ready for evaluation: tokenised as the task has it, without those that leave nothing to score, and routed as of
    `peftjax.train.routes.with_routes`."""
    tokens = with_routes(task.rows(records, tokenizer, template, length), records, routes, strict)
    kept = [records[i] for i in tokens.records]
    return Held(kept, [task.text(record, tokenizer, template) for record in kept], tokens)
