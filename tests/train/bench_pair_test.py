"""Pairs over real processes on a tiny base, and the tables."""

import dataclasses
import sys

import pytest
import tiny_checkpoint

from peftjax.train.bench_pair import Row, Side, as_table, cold_starts, cold_table, compare, describe, training_worker, write_base

OURS = Side("peftjax", 10, step_s=2.0, first_step_s=3.0, peak_bytes=10**9, loss=1.5)
PEER = Side("HF PEFT", 10, step_s=3.0, first_step_s=4.0, peak_bytes=4 * 10**9, loss=1.5)
ROW = Row("lora", "auto", 4, 256, flops=100e9, temporary_bytes=5 * 10**8, gemm=80e9, ours=OURS, peer=PEER, idle=0.01)


def cells(table):
    """The rows of a Markdown table as dicts by heading."""
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return [dict(zip(heads, row, strict=True)) for row in rows]


REAL = """
import jax
jax.config.update("jax_disable_most_optimizations", True)  # as in conftest.py
from peftjax.train.bench_pair import training_worker
from peftjax.train.bench_worker import serve
serve(lambda: training_worker({folder!r}, "lora", 2, 8, "auto"))
"""
TOLD = """
from peftjax.train.bench_worker import serve
facts = {{"trainable": {trainable}, "first_step_s": 4.0, "loss": 1.5, "flops": 8.0, "temporary_bytes": 5}}
times = iter({times})
serve(lambda: (facts, {{"step": lambda: {{"seconds": next(times)}}, "gemm": lambda: {{"flops": 16.0}}, "peak": lambda: {{"bytes": 7}}}}))
"""


def told(trainable=10, times=(9.0, 2.0, 1.0, 4.0)):
    """A side whose steps take the times it is told."""
    return [sys.executable, "-c", TOLD.format(trainable=trainable, times=list(times))]


@pytest.mark.slow  # a process that loads and compiles: seven seconds
def test_times_a_case_of_a_real_base(tmp_path):
    tiny_checkpoint.write(tmp_path)
    row = compare(("lora", "auto", 2, 8), {"peftjax": [sys.executable, "-c", REAL.format(folder=str(tmp_path))]}, steps=1)
    assert row.peer is None and row.tokens == 16
    assert row.ours.step_s > 0 and row.ours.first_step_s > 0 and row.ours.peak_bytes > row.temporary_bytes > 0 and row.gemm > 0
    assert 3 < row.ours.loss < 100 and row.ours.trainable > 0


def test_sides_take_turns_and_their_medians_leave_the_first_step_out():
    row = compare(("lora", "block", 4, 256), {"peftjax": told(), "peer": told(times=(8.0, 6.0, 5.0, 7.0))}, 3, told())
    assert (row.ours.step_s, row.peer.step_s) == (2.0, 6.0)
    assert (row.peer.name, row.peer.peak_bytes, row.peer.first_step_s, row.flops, row.gemm) == ("peer", 7, 4.0, 8.0, 16.0)


def test_unequal_work_is_refused():
    with pytest.raises(ValueError, match="peftjax trains 10 parameters, peer 11; that is not the same work"):
        compare(("lora", "auto", 2, 8), {"peftjax": told(), "peer": told(trainable=11)}, 1, told())


def test_an_unknown_case_is_named():
    with pytest.raises(ValueError, match="no case is called 'lroa'.*lora"):
        training_worker("nowhere", "lroa", 1, 1, "auto")


def test_cold_starts_take_turns():
    seconds = cold_starts({"peftjax": [sys.executable, "-c", "print({})"], "peer": [sys.executable, "-c", "print({})"]}, 2)
    assert {name: len(times) for name, times in seconds.items()} == {"peftjax": 2, "peer": 2}
    assert min(times for each in seconds.values() for times in each) > 0


def test_the_base_that_the_peers_load_has_our_weights(tmp_path):
    from peftjax.interop.base import load_base, load_params
    from peftjax.interop.fingerprint import fingerprint
    from peftjax.interop.hf import open_directory

    tiny_checkpoint.write(tmp_path / "ours")
    write_base(str(tmp_path / "ours"), str(tmp_path / "theirs"))
    opened = open_directory(tmp_path / "theirs")
    params = load_params(opened.config, opened.family, "hf", opened.sources, "theirs")
    assert fingerprint(params) == load_base(tmp_path / "ours").fingerprint


def test_table_has_both_sides_and_their_ratios():
    row, alone = cells(as_table([ROW, dataclasses.replace(ROW, peer=None)]))
    assert row["tokens/s"] == "512" and row["its tokens/s"] == "341" and row["**speed ratio**"] == "1.50"
    assert row["of GEMM rate"] == "62 % of 80" and row["**peak ratio**"] == "0.25" and row["temporaries MB"] == "500"
    assert alone["tokens/s"] == "512" and alone["peer"] == ""


def test_table_of_ours_alone_has_no_empty_columns():
    assert "peer" not in as_table([dataclasses.replace(ROW, peer=None)])


def test_a_line_says_what_shows_that_it_is_fair():
    text = describe(ROW)
    assert "512 tokens/s (first loss 1.5000, 10 trained)" in text and "1.0 % of a core" in text


def test_cold_table():
    assert cells(cold_table({"ours": [3.0, 1.0, 2.0]})) == [
        {"process start to first step done": "ours", "median s": "2.0", "each": "3.0, 1.0, 2.0"}
    ]
