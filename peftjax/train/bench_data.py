"""Training on real data here and in HF PEFT, in turns: response tokens a second, which is what a run is after.

| side   | form   | a batch                                                                                   | logits      |
|--------|--------|-------------------------------------------------------------------------------------------|-------------|
| ours   | run    | packed lines, prefixes shared where that saves: what a run does                           | of the loss |
| ours   | plain  | packed lines                                                                              | of the loss |
| ours   | full   | packed lines                                                                              | of all      |
| ours   | bucket | a row to a line, padded to one of a few lengths                                           | of the loss |
| peer   | padded | rows padded to the longest of the batch: what a Trainer does                              | of all      |
| peer   | packed | packed lines as plain sequences: tokens see the rows before theirs, the cheapest there is | of all      |

All take their rows from one shuffled set, about as many a step, and train LoRA of rank 16 on all linear layers. Each goes through the rows
at its own pace; in every turn it does as many steps as bring it to the same number of rows.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.data.batches import Batches
from peftjax.data.packing import Batch
from peftjax.data.tokens import TokenRows
from peftjax.train.bench_worker import Turns, Worker

FORMS = {"run": {"share": "auto"}, "plain": {}, "full": {}, "bucket": {"layout": "buckets"}}
PEER_FORMS = ("padded", "packed")


@dataclasses.dataclass
class Pace:
    """A form so far: rows and response tokens trained on, seconds."""

    side: str
    form: str
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, rows: int, tokens: int, seconds: float) -> None:
        """Counts one more step."""
        self.rows, self.tokens, self.seconds = self.rows + rows, self.tokens + tokens, self.seconds + seconds

    @property
    def rate(self) -> float:
        """Response tokens a second."""
        return self.tokens / self.seconds


def batches_of(rows: TokenRows, form: str, length: int, rows_per_step: int) -> Batches:
    """The batches of one of our forms, with as many lines of `length` tokens as hold at least `rows_per_step` rows on average."""
    lines = math.ceil(rows_per_step * Batches(rows, 1, length, 0, **FORMS[form]).report["tokens a row"] / length)
    return Batches(rows, lines, length, 0, **FORMS[form])


def with_all_logits(batch: Batch) -> Batch:
    """The same batch, with the head at every token; weights stay where the loss was."""
    lines, length = batch.tokens.shape
    targets, weights = np.zeros((lines, length), np.int32), np.zeros((lines, length), np.float32)
    used = np.nonzero(batch.weights)
    at = used[0], batch.loss_positions[used]
    targets[at], weights[at] = batch.targets[used], batch.weights[used]
    grid = np.broadcast_to(np.arange(length, dtype=np.int32), (lines, length))
    return batch._replace(loss_positions=grid, targets=targets, weights=weights)


def write_rows(path: Path, config: Any, tokenizer: Any, rows_per_step: int) -> TokenRows:
    """The training rows of a config's data, shuffled; in the file for both sides, with what the peer needs of the packed form.

    The file has ids, offsets, prompt_len as in `peftjax.data.tokens`, and of an epoch of packed lines tokens [S, B, T], labels of the same
    shape (-100 where none) and rows [S].
    """
    from peftjax.train.inputs import prepare

    config.eval.general.name = ""
    tokens = prepare(config, tokenizer).train.rows
    order = np.random.default_rng(0).permutation(len(tokens))
    rows = TokenRows(
        ids=np.concatenate([tokens.row(i) for i in order]), offsets=np.cumsum([0, *tokens.lengths[order]]),
        prompt_len=tokens.prompt_len[order], records=tokens.records[order],
    )
    packed = batches_of(rows, "plain", config.data.length, rows_per_step)
    steps = [packed.at(step) for step in range(packed.steps_per_epoch)]
    labels = np.full((len(steps), *steps[0].tokens.shape), -100, np.int32)
    for step, batch in zip(labels, steps, strict=True):
        used = np.nonzero(batch.weights)
        step[used[0], batch.loss_positions[used] + 1] = batch.targets[used]  # a causal model shifts its labels itself
    np.savez(
        path, ids=rows.ids, offsets=rows.offsets, prompt_len=rows.prompt_len, tokens=np.stack([batch.tokens for batch in steps]),
        labels=labels, rows=np.diff([packed.rows_seen(step) for step in range(len(steps) + 1)]),
    )
    return rows


def data_worker(uri: str, file: str, length: int, rows_per_step: int, forms: Sequence[str]) -> tuple[dict[str, Any], dict[str, Callable]]:
    """Our side, for `peftjax.train.bench_worker.serve`: all forms on one base, each compiled before it tells its facts.

    Args:
        file: of `write_rows`.
        length: tokens of a packed line.
        forms: names in `FORMS`.
    """
    import jax

    from peftjax.interop.base import load_base
    from peftjax.train.bench import METHODS
    from peftjax.train.config import default_config, methods
    from peftjax.train.memory import peak_memory_bytes
    from peftjax.train.parallel import compile_step
    from peftjax.train.prepare import prepare_model
    from peftjax.train.sharding import make_mesh
    from peftjax.train.startup import use_compilation_cache

    use_compilation_cache()
    with np.load(file) as stored:
        rows = TokenRows(stored["ids"], stored["offsets"], stored["prompt_len"], np.arange(len(stored["prompt_len"])))
    config, mesh = default_config(), make_mesh()
    config.peft = methods(METHODS["lora"])
    prepared = prepare_model(config, load_base(uri), mesh)
    step, place = compile_step(config, prepared, mesh)
    batches = {form: batches_of(rows, form, length, rows_per_step) for form in forms}
    held = [prepared.state]

    def timed(form: str, batch: Batch) -> dict[str, float]:
        batch = with_all_logits(batch) if form == "full" else batch
        start = time.perf_counter()
        held.append(jax.block_until_ready(step(held.pop(), prepared.frozen, place(batch)))[0])
        return {"seconds": time.perf_counter() - start, "tokens": int(batch.weights.sum())}

    def take(form: str, number: int) -> dict[str, float]:
        of = batches[form]
        return timed(form, of.at(number)) | {"rows": of.rows_seen(number + 1) - of.rows_seen(number)}

    for form, of in batches.items():
        for shape in of.shapes * 2:
            timed(form, of.empty(shape))
    facts = {"forms": {form: of.report | {"shapes": of.shapes} for form, of in batches.items()}}
    return facts, {"step": take, "peak": lambda: {"bytes": peak_memory_bytes()["peak_rss_bytes"]}}


def compare(
    ours: Sequence[str], peer: Sequence[str] | None, forms: Sequence[str], turns: int, rows_per_step: int
) -> tuple[list[Pace], dict[str, Any], float | None]:
    """Times one set.

    Args:
        ours: the command that serves `data_worker`.
        peer: the command of the peer's half; None times ours alone.
        forms: ours.
        turns: in each, every form goes on to the next `rows_per_step` rows.

    Returns:
        (the forms, ours and then the peer's; our facts; how idle who waits is, see `peftjax.train.bench_worker.Turns`).

    Raises:
        ChildProcessError: a side ended before its time.
    """
    with Worker("peftjax", ours) as first:
        facts = first.ready()
        paces = [(first, Pace("peftjax", form)) for form in forms]
        if peer is None:
            return _timed(Turns([first]), paces, turns, rows_per_step), facts, None
        with Worker("HF PEFT", peer) as second:
            second.ready()
            both = Turns([first, second])
            paces += [(second, Pace("HF PEFT", form)) for form in PEER_FORMS]
            return _timed(both, paces, turns, rows_per_step), facts, both.idle


def _timed(turns: Turns, paces: list[tuple[Worker, Pace]], count: int, rows_per_step: int) -> list[Pace]:
    """The forms in one order and then in the other. A step after the other side's is not counted: memory that went back to the system
    while a side waited is asked for anew, which a run does not do."""
    steps, last = dict.fromkeys(range(len(paces)), 0), None
    for turn in range(1, count + 1):
        for number in sorted(steps, reverse=turn % 2 == 0):
            worker, pace = paces[number]
            if worker is not last:
                turns.ask(worker, "step", form=pace.form, number=steps[number])
                last = worker
            while pace.rows < turn * rows_per_step:
                done = turns.ask(worker, "step", form=pace.form, number=steps[number])
                steps[number] += 1
                pace.add(**done)
    return [pace for _, pace in paces]


def as_table(sets: dict[str, list[Pace]]) -> str:
    """A Markdown table: how much faster the first form, ours as a run has it, is than each."""
    lines = [
        "| data | side | form | rows | rows/s | response tokens/s | **a run is faster by** |", "|---|---|---|--:|--:|--:|--:|",
    ]
    for name, paces in sets.items():
        lines += [
            f"| {name} | {pace.side} | {pace.form} | {pace.rows} | {pace.rows / pace.seconds:.2f} | {pace.rate:.1f} "
            f"| {paces[0].rate / pace.rate:.2f} |" for pace in paces
        ]
    return "\n".join(lines)
