"""Decoding variants on a tiny base in a real process, and the table of turns whose times are told."""

import sys

import jax.numpy as jnp
import pytest
import tiny_checkpoint

from peftjax.train.bench_decode import Result, Row, Timed, as_table, run, variants, weight_bytes
from peftjax.train.bench_worker import Worker

REAL = """
import jax
jax.config.update("jax_disable_most_optimizations", True)  # as in conftest.py
from peftjax.train.bench_decode import decoding_worker
from peftjax.train.bench_worker import serve
serve(lambda: decoding_worker({folder!r}, {cases}, prompt=5, new=3))
"""
TOLD = """
from peftjax.train.bench_worker import serve
order = []
def generate(case, batch):
    order.append((case, batch))
    slow = 10.0 if order.count((case, batch)) == 1 else 0.0  # the round that warms up
    return {{"prefill_s": 1.0, "total_s": 1.0 + slow + {seconds}[case]}}
rates = {{"read": 100.0, "copy": 50.0}}
serve(lambda: ({{"cases": {cases}, "bytes": {{"base": 400, "lora": 600, "mixed": 700}}}}, {{"generate": generate, "rates": lambda: rates}}))
"""


def told(seconds):
    """A library whose generations take the times it is told, apart from the first of each."""
    return [sys.executable, "-c", TOLD.format(seconds=seconds, cases=list(seconds))]


def cells(table):
    """The rows of a Markdown table as dicts by heading."""
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return [dict(zip(heads, row, strict=True)) for row in rows]


@pytest.mark.slow  # a process that compiles all its programs: eight seconds
def test_a_real_process_generates_with_what_it_holds(tmp_path):
    tiny_checkpoint.write(tmp_path)
    with Worker("ours", [sys.executable, "-c", REAL.format(folder=str(tmp_path), cases=["lora", "mixed"])]) as ours:
        facts = ours.ready()
        assert facts["cases"] == ["lora", "mixed"] and facts["bytes"]["mixed"] > facts["bytes"]["lora"] > 0
        answer = ours.ask("generate", case="mixed", batch=2)
        assert answer["prefill_s"] > 0 and answer["total_s"] > 0


def test_an_unknown_case_is_named():
    with pytest.raises(ValueError, match="no case is called 'metged' .did you mean 'merged'"):
        variants(None, ["base", "metged"])


def test_a_step_reads_the_embedding_only_where_it_is_the_head():
    params = {"embed": {"embedding": jnp.zeros((4, 3))}, "blocks": {"k": jnp.zeros((2, 5), jnp.int8)}}
    assert weight_bytes(params, tied=True) == 4 * 12 + 10 and weight_bytes(params, tied=False) == 10


def test_libraries_take_turns_and_the_first_round_does_not_count():
    ours, theirs = told({"base": 2.0, "lora": 3.0}), told({"base": 4.0, "lora": 8.0, "mixed": 16.0})
    result = run({"peftjax": ours, "HF PEFT": theirs}, [1, 8], rounds=2, new=3)
    rows = {(row.library, row.case, row.batch): row for row in result.rows}
    assert rows["peftjax", "base", 1].timed == Timed(1.0, 1.0, 1.0) and rows["HF PEFT", "lora", 8].timed.step_s == 4.0
    assert rows["peftjax", "lora", 8].over_base == 0.5 and rows["HF PEFT", "lora", 1].over_base == 1.0
    assert ("HF PEFT", "mixed", 8) in rows and ("HF PEFT", "mixed", 1) not in rows  # one row has one adapter
    assert (result.read, result.copy) == (100.0, 50.0)


def test_table_sets_libraries_and_limits_side_by_side():
    ours = [Row("base", 1, "peftjax", Timed(0.1, 0.02, 0.015), 0.0), Row("lora", 8, "peftjax", Timed(0.1, 0.04, 0.04), 1.0)]
    theirs = [Row("base", 1, "HF PEFT", Timed(0.2, 0.05, 0.05), 0.0), Row("mixed", 8, "HF PEFT", Timed(0.2, 0.1, 0.1), None)]
    base, lora = cells(as_table(Result([*ours, *theirs], {"base": 4 * 10**8, "lora": 5 * 10**8}, 40e9, 25e9, None)))
    assert base["tokens/s"] == "50.0" and base["ms/step (best)"] == "20.0 (15.0)" and base["its tokens/s"] == "20.0"
    assert base["of read rate (40 GB/s)"] == "50 %" and base["of copy rate (25 GB/s)"] == "80 %" and base["**speed ratio**"] == "2.50"
    assert lora["tokens/s"] == "200.0" and lora["over base"] == "+100 %" and lora["peer"] == ""
