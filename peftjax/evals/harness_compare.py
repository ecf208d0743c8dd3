"""The same tasks on a base here and on its export under the harness's Hugging Face backend: how far the answers are apart.

    compare(base, folder) -> [Difference("choice", items=528, largest=2e-5, ...), ...]

Three local tasks from the built-in data sets: a multiple choice, the log-likelihood of whole texts in windows, and generated text.
Their backend computes in float64: in float32 on CPU it is itself off by 1e-5 nats a token in one direction, 2.4e-3 over a text of 841 nats,
where ours in float32 was off by 1.5e-4 (SmolLM2-135M).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.evals.harness import HarnessModel, evaluate
from peftjax.interop.hf import write_directory

_TASKS = {
    "choice": "output_type: multiple_choice\ndoc_to_text: \"{{prompt}}\"\ndoc_to_choice: \"{{choices}}\"\n"
    "doc_to_target: answer\nmetric_list: [{metric: acc}]\n",
    "text": "output_type: loglikelihood_rolling\ndoc_to_text: \"\"\ndoc_to_target: \"{{text}}\"\nmetric_list: [{metric: bits_per_byte}]\n",
    "say": "output_type: generate_until\ndoc_to_text: \"{{prompt}} is\"\ndoc_to_target: \"{{prompt}}\"\n"
    "generation_kwargs: {until: [\"\\n\", \". \"], max_gen_toks: 24}\nmetric_list: [{metric: exact_match}]\n",
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of one task: answers compared, the largest distance of two log-likelihoods in nats and the sum of their sizes, and how many greedy
    flags and how many texts are unequal."""

    task: str
    items: int
    largest: float
    mean_size: float
    flags: int
    texts: int


def write_tasks(folder: Path, rows: int = 24) -> list[str]:
    """Writes the tasks' YAML and JSON files into `folder`; their names."""
    from peftjax.data.sources import load_records

    wordings, _ = load_records("icd_chapter")
    step = len(wordings) // rows
    chosen, chapters = wordings[::step][:rows], sorted({record.response for record in wordings})
    texts, _ = load_records("general")
    content = {
        "choice": [{"prompt": r.prompt, "choices": chapters, "answer": chapters.index(r.response)} for r in chosen],
        "text": [{"text": record.response} for record in texts[:rows]] + [{"text": " ".join(record.response for record in texts[:rows])}],
        "say": [{"prompt": record.prompt} for record in chosen],
    }
    for name, task in _TASKS.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in content[name]), "utf-8")
        source = f"task: peftjax_{name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(source + task, "utf-8")
    return [f"peftjax_{name}" for name in _TASKS]


def compare(
    base: Any, folder: str | Path, *, rows: int = 24, batch_size: int = 8, max_length: int = 256, dtype: str = "float64"
) -> list[Difference]:
    """Exports a base (float32) into `folder` and asks both backends the same.

    Args:
        max_length: tokens that a model may see, in both; short, so that windows and cuts occur.
        dtype: what their backend computes in.

    Raises:
        ImportError: the harness is not installed.
    """
    from lm_eval.models.huggingface import HFLM

    from peftjax.models.decoder import Decoder

    folder = Path(folder).resolve()
    write_directory(folder / "base", base.config, base.params)
    base.tokenizer.write_directory(folder / "base")
    (folder / "tasks").mkdir(exist_ok=True)
    names = write_tasks(folder / "tasks", rows)
    here = HarnessModel(Decoder(base.config), base.params, base.tokenizer, batch_size=batch_size, max_length=max_length)
    there = HFLM(pretrained=str(folder / "base"), dtype=dtype, batch_size=batch_size, max_length=max_length, device="cpu")
    found = [evaluate(model, names, tasks_dir=str(folder / "tasks"))["samples"] for model in (here, there)]
    return [difference(name, found[0][name], found[1][name]) for name in names]


def difference(task: str, ours: Sequence[Mapping], theirs: Sequence[Mapping]) -> Difference:
    """Compares the answers of one task, sample by sample as the harness lists them."""
    pairs = [
        (a, b)
        for left, right in zip(sorted(ours, key=_number), sorted(theirs, key=_number), strict=True)
        for mine, other in zip(left["resps"], right["resps"], strict=True)
        for a, b in zip(mine, other, strict=True)
    ]
    texts = [(a, b) for a, b in pairs if isinstance(a, str)]
    scored = [(a, b) if isinstance(a, tuple) else ((a, None), (b, None)) for a, b in pairs if not isinstance(a, str)]
    apart = [abs(a[0] - b[0]) for a, b in scored]
    return Difference(
        task, len(pairs), max(apart, default=0.0), sum(abs(b[0]) for _, b in scored) / len(scored) if scored else 0.0,
        sum(a[1] != b[1] for a, b in scored), sum(a != b for a, b in texts),
    )


def _number(sample: Mapping) -> int:
    return sample["doc_id"]
