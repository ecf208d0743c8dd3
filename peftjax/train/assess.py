"""Evaluation of any base, with or without an adapter, on any data set. The work directory is the evaluation: the same command starts it,
goes on with it after a kill, or finds it done.

    config.json              what was asked; another question is refused
    predictions.jsonl        one object a row: id, group, lang, prompt, reference, prediction, nll, tokens, and each metric's score
    result.json              as of a run (`peftjax.train.result`), with one evaluation, and by domain and language
    report.md, domains.png

The domain of a record is its group up to the first "/". Rows are answered in blocks; each block is written when it is done, so that an
interrupted evaluation loses one block at most.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from peftjax.data.records import Record, content_hash
from peftjax.data.sources import DATASETS, load_records
from peftjax.data.splits import split_records
from peftjax.data.template import Template
from peftjax.evals.classes import macro_f1
from peftjax.evals.metrics import METRICS, perplexity, summarise
from peftjax.files import replacing
from peftjax.hints import did_you_mean
from peftjax.peft.partition import nothing, partition, size
from peftjax.train.adapters import Ready, config_of, ready
from peftjax.train.assess_report import write_assessment
from peftjax.train.config import SMOLLM2, composition, default_config, methods, plain
from peftjax.train.held import Held
from peftjax.train.inputs import hold, pick
from peftjax.train.memory import peak_memory_bytes
from peftjax.train.result import write_result
from peftjax.train.routes import routes_of
from peftjax.train.startup import use_compilation_cache
from peftjax.train.task import Task, task_for
from peftjax.train.versions import versions
from peftjax.train.workdir import WorkDir, default_workdir

BLOCK = 256  # rows answered between two writes
PREDICTIONS, PARTIAL = "predictions.jsonl", "predictions.partial.jsonl"


def question(
    run: str | None = None, base: str | None = None, adapter: str | None = None, *, step: int | None = None, other_base: bool = False,
    split: str | None = None, changes: Mapping[str, Any] = {}, needs_data: bool = True, drop_layers: Sequence[int] = (),
) -> ConfigDict:
    """What is to be evaluated on what, as the config of a run with a section `assess`.

    Args:
        run: work directory of a run: its base, adapter, data and template; the rest of the arguments but `changes` and `split` exclude it.
        base: base's URI; default SmolLM2-135M-Instruct.
        adapter: directory of an adapter, in any form.
        step: checkpoint of the run; default the newest.
        split: "all", or a split of the data: by default the run's "test", else "all".
        drop_layers: layers on which the adapter is off.
        needs_data: whether a data set must be named; the evaluation harness has its own.
        changes: fields by dotted name that differ from the run's, or from the defaults: {"data.name": "icd_chapter", "eval.rows": 64}.

    Raises:
        ValueError: what excludes another, an unknown field, metric or split, or no data; names the nearest.
    """
    config = default_config()
    if run is not None:
        if base is not None or adapter is not None:
            raise ValueError("--run excludes --base and --adapter: a run names its own base, and has its own adapter")
        with config.unlocked():
            config.update(config_of(Path(run)))
        checkpoints = Path(run) / "checkpoints"
        step = max((int(path.name) for path in checkpoints.glob("[0-9]*") if path.name.isdigit()), default=None) if step is None else step
    elif step is not None:
        raise ValueError("--step belongs to a run: name its folder with --run")
    else:
        config.base.uri = base or SMOLLM2
        config.adapter.path, config.adapter.other_base = adapter or "", other_base
    own_data = run is not None and changes.get("data.name", config.data.name) == config.data.name
    if not own_data:
        config.data.options = {}
    config.eval.every, config.eval.at_end, config.eval.rows, config.eval.general.name = 0, ("test",), 0, ""
    known = {f"{section}.{field}" for section in ("data", "eval") for field in config[section]}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"config.{name} is no field of an evaluation{did_you_mean(name, known)}")
        config[name.split(".")[0]][name.split(".")[1]] = value
    splits = ("all", *config.data.fractions)
    split = split or ("test" if own_data else "all")
    if split not in splits:
        raise ValueError(f"split is {split!r}{did_you_mean(split, splits)}; it may be {', '.join(splits)}")
    if needs_data and not config.data.name:
        raise ValueError(f"no data: name a built-in set ({', '.join(DATASETS)}) or the path of a JSONL file with --data")
    for metric in config.eval.metrics:
        if metric not in METRICS:
            raise ValueError(f"no metric {metric!r}{did_you_mean(metric, METRICS)}; metrics are {', '.join(METRICS)}")
    Template(prompt=config.data.prompt, response=config.data.response, chat=config.data.chat)  # a malformed one is refused here
    config.assess = {"run": run or "", "step": placeholder(int), "split": split, "inputs": _digests(adapter, config.data.name)}
    config.assess.step = step
    if drop_layers:
        config.assess.drop_layers = tuple(drop_layers)
    return config


def assess(config: ConfigDict, workdir: str | Path | None = None, say: Callable[[str], None] = print) -> Path:
    """Answers a question; returns its work directory, by default `runs/evaluate-<data>-<hash>`.

    Raises:
        ValueError, FileNotFoundError: anything in base, adapter, data or work directory that does not fit, named.
    """
    started = time.time()
    name = f"evaluate-{Path(config.data.name).stem}"
    folder = WorkDir(workdir or default_workdir(name, config), config)
    with contextlib.closing(folder):
        if not folder.done:
            use_compilation_cache()
            _assess(config, folder.path, say, started)
        report = write_assessment(folder.path)
        say(f"report: {report}")
    return folder.path


def _assess(config: ConfigDict, folder: Path, say: Callable[[str], None], started: float) -> None:
    subject = load_subject(config)
    records, source = load_records(config.data.name, **_options(config))
    rows = pick(_split(records, config), config.eval.rows)
    task = _task(config, subject)
    template = Template(prompt=config.data.prompt, response=config.data.response, chat=config.data.chat)
    everything = hold(rows, task, subject.base.tokenizer, template, config.data.length, routes_of(composition(config)))
    say(f"{subject.origin}: {len(everything.tokens)} rows of {config.data.name}, loaded at {time.time() - started:.1f} s")
    items = answer(config, subject, task, template, everything, folder / PARTIAL, say)
    order = {record.id: number for number, record in enumerate(records)}
    items.sort(key=lambda item: order[item["id"]])
    with replacing(folder / PREDICTIONS) as partial:
        partial.write_text("".join(_line(item) for item in items), "utf-8", errors="backslashreplace")
    write_result(folder, result(config, subject, task, items, records, everything, source, time.time() - started))
    (folder / PARTIAL).unlink(missing_ok=True)


def load_subject(config: ConfigDict) -> Ready:
    """The base, and the adapter of the run or directory. Errors as in `peftjax.train.adapters.ready`."""
    off = config.assess.get("drop_layers", ())
    if config.assess.run:
        return ready(config.assess.run, step=config.assess.step, drop_layers=off)
    return ready(base=config.base.uri, adapter=config.adapter.path or None, other_base=config.adapter.other_base, drop_layers=off)


def answer(
    config: ConfigDict, subject: Ready, task: Task, template: Template, everything: Held, partial: Path, say: Callable[[str], None]
) -> list[dict]:
    """An item for each row; those that `partial` holds are taken from there, and each new block is added to it."""
    items = _finished(partial)
    done = {item["id"] for item in items}
    if done:
        say(f"going on after {len(done)} of {len(everything.records)} rows")
    left = [pair for pair in zip(everything.texts, everything.records, strict=True) if pair[1].id not in done]
    left.sort(key=lambda pair: (len(pair[0]), pair[1].id))  # rows of like length are answered together
    # What has no prompt gets no answer, and is kept apart from what does.
    kinds = [[record for text, record in left if bool(text) == asked] for asked in (False, True)]
    blocks = [kind[start:start + BLOCK] for kind in kinds for start in range(0, len(kind), BLOCK)]
    params, held, routes = subject.params, {}, routes_of(composition(config))
    evaluator = task.evaluator(subject.model(), subject.base.tokenizer, config, held, say)
    for records in blocks:
        held["test"] = hold(records, task, subject.base.tokenizer, template, config.data.length, routes)
        found = evaluator.run(config.assess.step or 0, "test", nothing(params), params, None)["predictions"]
        block = [
            {"id": record.id, "group": record.group, "lang": record.lang, "prompt": text, "reference": record.response} | item
            for record, text, item in zip(held["test"].records, held["test"].texts, found, strict=True)
        ]
        with open(partial, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(_line(item) for item in block)
            file.flush()
            os.fsync(file.fileno())
        items += block
        say(f"{len(items)} of {len(everything.records)} rows done")
    return items


def summary(items: Sequence[Mapping], metrics: Sequence[str], labels: bool = False) -> dict[str, Any]:
    """rows, loss (mean nats a token, or a text), perplexity, and each metric that was measured with its 95 % interval.

    Args:
        labels: the predictions are labels: macro F1 takes the place of perplexity.
    """
    nll, tokens = sum(item["nll"] for item in items), sum(item["tokens"] for item in items)
    found = {"rows": len(items), "loss": nll / tokens}
    if not labels:
        found["perplexity"] = perplexity(nll, tokens)
    elif all("prediction" in item for item in items):
        found["macro_f1"] = macro_f1([item["prediction"] for item in items], [item["reference"] for item in items])
    scored = {name: [item[name] for item in items if name in item] for name in metrics}
    return found | {"metrics": {name: summarise(name, values) for name, values in scored.items() if values}}


def result(config, subject, task, items, records, everything, source, seconds) -> dict[str, Any]:
    """The content of result.json."""
    labels = task.specification()
    metrics = list(config.eval.metrics)

    def by(key: Callable[[Mapping], str]) -> dict[str, Any]:
        groups: dict[str, list] = {}
        for item in items:
            groups.setdefault(key(item), []).append(item)
        return {name: summary(group, metrics, bool(labels)) for name, group in sorted(groups.items())}

    base_count, base_bytes = size(subject.base.params)
    count, held_bytes = size(partition(subject.params)[0]) if subject.methods else (0, 0)
    return {
        "config": plain(config), "versions": versions(),
        "base": {"uri": subject.base.uri, "fingerprint": subject.base.fingerprint, "parameters": base_count, "bytes": base_bytes},
        "tokenizer": {"fingerprint": subject.base.tokenizer.fingerprint},
        "methods": json.loads(json.dumps([method.to_dict() for method in methods(*subject.methods)])), "lineage": subject.lineage,
        "trainable": {"parameters": count, "bytes": held_bytes},
        "data": {"name": config.data.name, "counts": {"source": source, "rows": everything.tokens.report},
                 "content_hash": content_hash(records)},
        "evaluations": [
            {"step": config.assess.step or 0, "split": config.assess.split} | summary(items, metrics, bool(labels))
        ],
        "domains": by(lambda item: item["group"].split("/")[0]), "languages": by(lambda item: item["lang"]),
        "predictions": [],  # in predictions.jsonl
        "timings": {"total_s": seconds}, "memory": peak_memory_bytes(),
    } | labels


def _task(config: ConfigDict, subject: Ready) -> Task:
    """What the base is for, with the labels of the adapter's head."""
    asked = ConfigDict(config)
    asked.peft = methods(*subject.methods)
    return task_for(asked, subject.base.config)


def _options(config: ConfigDict) -> dict[str, Any]:
    options = config.data.options.to_dict()
    return options if config.data.name in DATASETS else {"on_bad_row": config.data.on_bad_row} | options


def _split(records: list[Record], config: ConfigDict) -> list[Record]:
    if config.assess.split == "all":
        return records
    rows = split_records(records, config.data.fractions.to_dict(), salt=config.data.salt)[config.assess.split]
    if not rows:
        raise ValueError(f"no group of {config.data.name} falls into the split {config.assess.split!r}; --split=all takes all rows")
    return rows


def _digests(adapter: str | None, data: str) -> dict[str, str]:
    """sha256 of the files that are named by path, so that what is changed in them is another question."""
    paths = {"data": Path(data)} | ({} if adapter is None else {"adapter": Path(adapter)})
    found = {}
    for name, path in paths.items():
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path] if path.is_file() else []
        if files:
            found[name] = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:16]
    return found


def _finished(partial: Path) -> list[dict]:
    """The items of an interrupted evaluation; a last line that was cut off is taken away."""
    if not partial.exists():
        return []
    whole = partial.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    with replacing(partial) as again:
        again.write_bytes(whole)
    return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]


def _line(item: Mapping) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"
