"""A study on a tiny base: what it refuses, and what it says where the truth is known."""

import pytest
from tiny_study import tiny_study

from peftjax.evals.statistics.equivalence import BETTER, EQUIVALENT, OPEN, WORSE
from peftjax.peft import lora
from peftjax.study.compare import analyse
from peftjax.study.conduct import conduct
from peftjax.study.report import write_report
from peftjax.study.tables import read
from peftjax.train.config import methods


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def trained(folder):
    """One method under two names, and the same where it may change the first layer's queries alone."""
    study = tiny_study(folder)
    crippled = lora(targets=".*/q", layers=(0,))
    study.methods = {"LoRA": methods(lora()), "twin": methods(lora()), "crippled": methods(crippled)}
    study.measure, study.seeds, study.tuning.rounds = "loss", (0, 1, 2), 4
    conduct(study, folder / "trained", say=lambda _: None)
    return study, folder / "trained"


def test_a_budget_that_no_size_meets_is_refused(folder):
    study = tiny_study(folder)
    study.methods, study.deviation = {"LoRA": methods(lora())}, 0.05
    study.budgets = {"odd": {"parameters": 100}}
    with pytest.raises(ValueError, match=r"LoRA cannot meet the budget 'odd': the nearest is .* where 100 were asked"):
        conduct(study, folder / "odd")


@pytest.mark.slow  # trains two dozen runs
def test_one_method_under_two_names_is_not_told_apart(trained):
    found = analyse(read(trained[1]))
    pair = next(pair for pair in found.pairs if (pair.a, pair.b) == ("LoRA", "twin"))
    assert pair.verdict in (EQUIVALENT, OPEN) and pair.p_corrected > 0.5 and abs(pair.effect.mean) < 1e-3
    assert any({"LoRA", "twin"} <= set(group) for group in found.groups[pair.comparison])


@pytest.mark.slow  # as above
def test_a_method_that_was_crippled_is_told_apart(trained):
    pairs = [pair for pair in analyse(read(trained[1])).pairs if "crippled" in (pair.a, pair.b)]
    assert [(pair.a, pair.b, pair.verdict) for pair in pairs] == [("LoRA", "crippled", BETTER), ("crippled", "twin", WORSE)]
    assert all(pair.interval[0] > 0 or pair.interval[1] < 0 for pair in pairs)


@pytest.mark.slow  # as above
def test_a_study_that_is_done_is_found_done(trained):
    study, folder = trained
    said, kept = [], {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    conduct(study, folder, say=said.append)
    assert not any(line.startswith("program") for line in said)
    assert {path: path.read_bytes() for path in kept} == kept
    write_report(folder)
    assert {path: path.read_bytes() for path in kept} == kept
