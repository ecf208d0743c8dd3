"""What is left of adapters in their average, from runs on a tiny base."""

import json

import pytest
from tiny_study import tiny_study

from peftjax.peft import lora
from peftjax.study.combine import WAY, combined
from peftjax.study.conduct import base_for, conduct
from peftjax.study.tables import read
from peftjax.train.config import methods

pytestmark = pytest.mark.slow  # trains ten runs on two data sets


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two data sets of the same rows, whose adapters start from other values."""
    found = tiny_study(tmp_path_factory.mktemp("combined"))
    found.data = {"one": found.data["colours"].copy_and_resolve_references(), "two": found.data["colours"]}
    found.methods, found.tuning.rounds, found.combine = {"LoRA": methods(lora())}, 1, True
    return found


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    conduct(study, folder, say=lambda _: None)
    return folder


def by_id(items, data, seed, way):
    return {item["id"]: item["nll"] for item in items if (item["data"], item["seed"], item["combined"]) == (data, seed, way)}


def test_each_average_has_the_items_of_each_data_set(study, folder):
    items = read(folder).items
    for data in study.data:
        for seed in study.seeds:
            own, averaged = by_id(items, data, seed, ""), by_id(items, data, seed, WAY)
            assert own.keys() == averaged.keys() and len(own) == 48
            assert max(abs(own[name] - averaged[name]) for name in own) > 1e-3  # another adapter acts too
    assert "## Interference" in (folder / "report.md").read_text()


def test_the_average_of_one_adapter_is_that_adapter(study, folder, tmp_path):
    alone = study.copy_and_resolve_references()
    alone.data = {"one": alone.data["one"]}
    stored = read(folder)
    runs = [run for run in stored.runs if run["data"] == "one"]
    items = combined(alone, base_for(study), runs, tmp_path, say=lambda _: None)
    for seed in study.seeds:
        own, averaged = by_id(stored.items, "one", seed, ""), by_id(items, "one", seed, WAY)
        assert averaged == pytest.approx(own, rel=1e-4)


def test_what_was_measured_is_read_again_unless_a_rate_is_new(study, folder):
    runs, said = read(folder).runs, []
    assert len(combined(study, base_for(study), runs, folder, say=said.append)) == 2 * 2 * 48 and not said
    changed = [run | {"rate": 2 * run["rate"]} if (run["data"], run["seed"]) == ("two", 1) else run for run in runs]
    combined(study, base_for(study), changed, folder, say=said.append)
    assert said == ["average 2 of 2: small, 0, LoRA, 1"]
    stored = json.loads((folder / "combined" / "small-0-LoRA-1.json").read_text())
    assert stored["rates"] == {run["data"]: run["rate"] for run in changed if run["seed"] == 1}


def test_what_is_not_whole_is_left_out(study, folder, tmp_path):
    runs = [run | {"error": "diverged"} if (run["data"], run["seed"]) == ("one", 0) else run for run in read(folder).runs]
    kept = folder / "combined" / "small-0-LoRA-0.json"
    assert kept.exists()
    assert {item["seed"] for item in combined(study, base_for(study), runs, tmp_path, say=lambda _: None)} == {1}
