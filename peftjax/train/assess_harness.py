"""The evaluation harness's tasks on any base, with or without an adapter, in a work directory of their own.

    config.json, answers_rank0.db      what was asked, and the answers so far: the same command goes on with it, or finds it done
    samples.jsonl                      one object a question: task, doc, arguments, answers, scores
    result.json                        the harness's results by task, with versions, base and adapter
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.evals.harness import HarnessModel, evaluate
from peftjax.files import replacing
from peftjax.models.encoder_config import EncoderConfig
from peftjax.train.assess import load_subject
from peftjax.train.config import plain
from peftjax.train.startup import use_compilation_cache
from peftjax.train.versions import versions
from peftjax.train.workdir import WorkDir, default_workdir


def assess_harness(
    config: ConfigDict, tasks: Sequence[str], tasks_dir: str | None = None, workdir: str | Path | None = None, *,
    fewshot: int | None = None, limit: int | None = None, chat: bool = False, say: Callable[[str], None] = print,
) -> Path:
    """Runs tasks of the harness (see `peftjax.evals.harness.evaluate`); returns the work directory, by default `runs/harness-<hash>`.

    Args:
        config: of `peftjax.train.assess.question`, for base and adapter; `eval.batch_size` rows are scored at a time.

    Raises:
        ImportError: the harness is not installed.
        ValueError: a task that is not there, an encoder, or what `question` and `WorkDir` refuse.
    """
    config = ConfigDict(config)
    config.assess.harness = {
        "tasks": tuple(tasks), "tasks_dir": tasks_dir or "", "fewshot": fewshot, "limit": limit, "chat": chat,
    }
    folder = WorkDir(workdir or default_workdir("harness", config), config)
    with contextlib.closing(folder):
        if not folder.done:
            use_compilation_cache()
            subject = load_subject(config)
            if isinstance(subject.base.config, EncoderConfig):
                raise ValueError(f"{subject.origin} is an encoder; the harness asks for likelihoods of texts, which only decoders have")
            answering = HarnessModel(subject.model(), subject.params, subject.base.tokenizer, batch_size=config.eval.batch_size)
            found = evaluate(
                answering, tasks, tasks_dir=tasks_dir, fewshot=fewshot, limit=limit, chat=chat, cache=str(folder.path / "answers"),
            )
            _write(folder.path, config, subject, found)
        results = json.loads((folder.path / "result.json").read_text("utf-8"))["results"]
        say(json.dumps(results, indent=1, ensure_ascii=False))
        say(f"results: {folder.path / 'result.json'}")
    return folder.path


def _write(folder: Path, config: ConfigDict, subject: Any, found: dict[str, Any]) -> None:
    samples = [{"task": task} | sample for task, rows in found["samples"].items() for sample in rows]
    with replacing(folder / "samples.jsonl") as partial:
        lines = (json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
        partial.write_text("".join(lines), "utf-8", errors="backslashreplace")
    result = {
        "config": plain(config), "versions": versions(),
        "base": {"uri": subject.base.uri, "fingerprint": subject.base.fingerprint},
        "lineage": subject.lineage, "results": found["results"],
        "tasks": {name: found["configs"][name] for name in found["configs"]},
    }
    with replacing(folder / "result.json") as partial:
        partial.write_text(json.dumps(result, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8", errors="backslashreplace")
