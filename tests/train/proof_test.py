"""Proof of the exports: what is written is read again with the logits beside it, and an answer that lacks or differs shows."""

import json
from pathlib import Path

import numpy as np
import pytest
from golden_bases import GOLDEN, base, forward

from peftjax.interop.exchange.load import form_of, load_adapter
from peftjax.nn.tree import get
from peftjax.peft import houlsby, lora
from peftjax.peft.prefix import prefix
from peftjax.train.proof import ANSWER, CASES, Case, adapted, as_table, compare_jobs, in_words, open_base, write_jobs

CASES_HERE = (
    Case("LoRA on one layer", "peft", (lora(rank=3, targets="q_proj", layers=(1,), rank_pattern={"q_proj": 2}),)),
    Case("Houlsby", "adapterhub", (houlsby(size=3),)),
    Case("elsewhere", "peft", (lora(rank=3),), lambda base: base.config.family == "gpt2"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, jobs) of these cases on one base."""
    folder = tmp_path_factory.mktemp("proof")
    return folder, write_jobs(folder, [GOLDEN / "llama"], CASES_HERE)


def test_a_job_for_each_case_that_fits(written):
    folder, jobs = written
    assert [(job["case"], job["form"], Path(job["base"]).name) for job in jobs] == [
        ("LoRA on one layer", "peft", "llama"), ("Houlsby", "adapterhub", "llama"),
    ]  # fmt: skip
    assert json.loads((folder / "jobs.json").read_text()) == jobs
    assert {job["classifies"] for job in jobs} == {"False"} and len({job["at"] for job in jobs}) == 2


@pytest.mark.parametrize(("number", "form"), [(0, "HF PEFT"), (1, "AdapterHub")])
def test_what_was_written_is_read_with_the_logits_beside_it(number, form, written):
    at, on = Path(written[1][number]["at"]), base("llama")
    assert form_of(at / "adapter") == form
    there = load_adapter(at / "adapter", on)
    with np.load(at / "ours.npz") as ours:
        found = dict(ours)
    assert np.abs(forward(on.config, on.params, found) - found["logits"]).max() > 0.05  # else an adapter that does nothing would pass
    np.testing.assert_allclose(forward(on.config, there.params, found, there.segments), found["logits"], atol=1e-4)


def test_what_is_answered_is_not_done_again_and_a_refused_export_is_a_job_without_an_answer(tmp_path):
    cases = (CASES_HERE[0], Case("no place for it", "adapterhub", (prefix(length=2, offset=True),)))
    said = []
    jobs = write_jobs(tmp_path, [GOLDEN / "llama"], cases, name="mine.json", say=said.append)
    assert json.loads((tmp_path / "mine.json").read_text()) == jobs and said[-1] == "llama: 2 exports"
    assert "no place for it in the form adapterhub on llama is not written: AdapterHub has no place" in said[0]
    at = Path(jobs[0]["at"])
    np.savez(at / ANSWER, logits=np.zeros(3))
    before = (at / "ours.npz").stat().st_mtime_ns
    assert write_jobs(tmp_path, [GOLDEN / "llama"], cases, say=said.append) == jobs
    assert (at / "ours.npz").stat().st_mtime_ns == before and (at / ANSWER).is_file()
    assert [found for _, found in compare_jobs(jobs)] == [np.inf, np.inf]  # an answer of another shape, and none


def test_every_trainable_is_moved_but_for_rows_beyond_a_rank():
    case = Case("", "peft", (lora(rank=4, targets=["q_proj", "v_proj"], rank_pattern={"blocks/0/attn/q": 2}),))
    params, segments, _ = adapted(open_base(GOLDEN / "llama"), case)
    assert segments == ()
    node = get(params, "blocks/attn/q/kernel")
    used = np.array([[True, True, False, False], [True] * 4])
    for factor in (node.a, node.b):
        np.testing.assert_array_equal(np.any(np.asarray(factor) != 0, axis=-1), used)
    assert np.all(np.any(np.asarray(get(params, "blocks/attn/v/kernel").b) != 0, axis=-1))


def test_the_cases_are_distinct_and_each_fits_a_base():
    bases = [base(name) for name in ("llama", "llama_tied", "mistral", "gpt2", "bert", "roberta")]
    for on in bases:
        here = [(case.name, case.form) for case in CASES if case.fits(on)]
        assert len(set(here)) == len(here)
    assert {case.form for case in CASES} == {"peft", "adapterhub", "merged"}
    assert all(any(case.fits(on) for on in bases) for case in CASES)


WRONG = {
    "equal": (lambda logits: logits, 0.0),
    "one logit off": (lambda logits: logits + 0.5 * (np.arange(logits.size) == 7).reshape(logits.shape), 0.5),
    "not a number": (lambda logits: np.where(np.arange(logits.size).reshape(logits.shape) == 7, np.nan, logits), np.inf),
    "another shape": (lambda logits: logits[:1, :, :1], np.inf),
    "nothing": (None, np.inf),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_largest_difference_counts_and_what_is_no_answer_is_infinity(case, tmp_path):
    change, wanted = WRONG[case]
    logits = np.zeros((2, 3, 5), np.float32)
    np.savez(tmp_path / "ours.npz", logits=logits)
    if change is not None:
        np.savez(tmp_path / "theirs.npz", logits=change(logits))
    job = {"case": "LoRA", "form": "peft", "base": "/bases/llama", "at": str(tmp_path)}
    assert list(compare_jobs([job])) == [(job, wanted)]


def test_the_jobs_written_lack_an_answer(written):
    assert [difference for _, difference in compare_jobs(written[1])] == [np.inf, np.inf]


def test_a_table_of_methods_by_bases():
    rows = [({"case": case, "form": form, "base": f"/bases/{on}"}, found) for case, form, on, found in [
        ("LoRA", "peft", "llama", 2e-6), ("LoRA", "adapterhub", "llama", 0.0), ("LoRA", "peft", "gpt2", np.inf),
    ]]  # fmt: skip
    assert in_words(rows).splitlines() == [
        "1 cases on 2 bases", "peft: 1 of 2 within 0.0001, the largest difference inf",
        "adapterhub: 1 of 1 within 0.0001, the largest difference 0.0e+00",
    ]  # fmt: skip
    assert as_table(rows).splitlines() == [
        "| method | form | llama | gpt2 |", "|---|---|--:|--:|", "| LoRA | peft | 2e-06 | inf |", "| LoRA | adapterhub | 0e+00 |  |",
    ]  # fmt: skip
