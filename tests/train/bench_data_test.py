"""Our forms and the peer's train on the same rows; paces are counted in turns."""

import sys

import numpy as np
import pytest
from tiny_run import tiny_config

from peftjax.data.tokens import TokenRows
from peftjax.models.tokenizer import Tokenizer
from peftjax.train.bench_data import Pace, as_table, batches_of, compare, data_worker, with_all_logits, write_rows


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(folder with rows.npz and a base, the rows, tokens of a line)."""
    folder = tmp_path_factory.mktemp("bench_data")
    config = tiny_config(folder)
    return folder, write_rows(folder / "rows.npz", config, Tokenizer.from_directory(folder / "base"), 4), config.data.length


def test_the_file_has_every_row_and_every_loss_token_of_the_packed_form(stored):
    folder, rows, length = stored
    with np.load(folder / "rows.npz") as file:
        assert file["ids"].tolist() == rows.ids.tolist() and 0 <= file["rows"].sum() - len(rows) < 8  # the last goes on with the next epoch
        used = file["labels"] >= 0
        assert 0 <= used.sum() - rows.loss_lengths.sum() < 80 and (file["labels"][used] == file["tokens"][used]).all()
        assert file["tokens"].shape[2] == length and 4 <= file["rows"][:-1].mean() <= 8


def test_all_logits_carry_the_same_loss(stored):
    _, rows, length = stored
    batch = batches_of(rows, "full", length, 4).at(0)
    full = with_all_logits(batch)
    assert full.loss_positions.shape == batch.tokens.shape and full.weights.sum() == batch.weights.sum()
    used = np.nonzero(full.weights)
    assert (full.targets[used] == batch.tokens[used[0], used[1] + 1]).all()


def test_as_many_lines_as_hold_the_rows_asked_for():
    tokens = np.concatenate([[*range(1, 31), 100 + i, 7] for i in range(64)]).astype(np.int32)
    rows = TokenRows(tokens, np.arange(65) * 32, np.full(64, 30, np.int32), np.arange(64))
    assert [batches_of(rows, form, 128, 16).shapes[0].lines for form in ("run", "plain", "bucket")] == [1, 4, 16]


@pytest.mark.slow  # a program for each form: eight seconds
def test_each_form_takes_steps(stored):
    folder, rows, length = stored
    facts, commands = data_worker(str(folder / "base"), str(folder / "rows.npz"), length, 4, ("run", "full", "bucket"))
    assert facts["forms"].keys() == {"run", "full", "bucket"}
    for form in facts["forms"]:
        done = commands["step"](form, 0)
        assert done["seconds"] > 0 and done["tokens"] > 0 and 1 <= done["rows"] <= 12
    assert commands["peak"]()["bytes"] > 1e7


TOLD = """
from peftjax.train.bench_worker import serve
rows = {{"run": 8, "padded": 4, "packed": 5}}
serve(lambda: ({{}}, {{"step": lambda form, number: {{"seconds": 1.0 + number, "tokens": {tokens}, "rows": rows[form]}}}}))
"""


def told(tokens):
    return [sys.executable, "-c", TOLD.format(tokens=tokens)]


def test_forms_keep_step_in_rows_each_at_its_own_pace():
    paces, _, _ = compare(told(10), told(3), ["run"], turns=3, rows_per_step=4)
    assert paces == [
        Pace("peftjax", "run", rows=16, tokens=20, seconds=3.0), Pace("HF PEFT", "padded", 12, 9, 6.0),
        Pace("HF PEFT", "packed", 15, 9, 6.0),
    ]
    (alone,), _, idle = compare(told(10), None, ["run"], turns=1, rows_per_step=4)
    assert alone.rows == 8 and idle is None


def test_table_compares_each_form_with_what_a_run_does():
    table = as_table({"bank": [Pace("peftjax", "run", 8, 20, 2.0), Pace("HF PEFT", "padded", 8, 20, 8.0)]})
    assert "| bank | peftjax | run | 8 | 4.00 | 10.0 | 1.00 |" in table
    assert "| bank | HF PEFT | padded | 8 | 1.00 | 2.5 | 4.00 |" in table
