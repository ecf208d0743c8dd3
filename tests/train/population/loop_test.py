"""The law of populations: a member is the run that it would be alone, whatever the others are; and leaves the folder of that run."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import tiny_config, write_task

from peftjax.peft import lora, pfeiffer
from peftjax.train.config import methods
from peftjax.train.journal import Journal
from peftjax.train.logs import read_metrics
from peftjax.train.loop import run
from peftjax.train.population import Halving, run_population
from peftjax.train.population.program import Program


def config_of(folder: Path, method=None, steps: int = 8, **optimizer):
    """A run that is measured little: its losses and folder are what counts."""
    config = tiny_config(folder)
    config.peft, config.train.steps = methods(method or lora(rank=4)), steps
    config.optimizer.update(optimizer)
    config.eval.before, config.eval.generate, config.eval.general.name, config.eval.every = False, False, "", 0
    config.checkpoint.every = 4
    return config


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("population")


@pytest.fixture(scope="module")
def configs(tiny) -> list:
    """Members that differ in every way in which members of a program may."""
    low = config_of(tiny, lora(rank=2, dropout=0.2, alpha=3.0), weight_decay=0.1, learning_rate=3e-3)
    high = config_of(tiny, lora(rank=6), lora_plus_ratio=4.0, clip=0.5, final_fraction=0.1)
    high.train.seed = 5
    other = config_of(tiny, lora(rank=4))
    other.data.name = str(write_task(tiny / "other.jsonl"))
    other.data.response, other.train.seed = "{response} and {response}", 2
    patient = config_of(tiny, learning_rate=0.0)
    patient.eval.every, patient.eval.patience = 2, 1
    return [config_of(tiny), low, high, other, config_of(tiny, learning_rate=1e38, warmup=0), config_of(tiny, pfeiffer(size=3)), patient]


@pytest.fixture(scope="module")
def finished(tiny, configs):
    """(outcomes, folders, the program) of all of them at once."""
    programs = []
    with pytest.MonkeyPatch.context() as patched:
        made = Program.__init__
        patched.setattr(Program, "__init__", lambda self, *rest, **more: (programs.append(self), made(self, *rest, **more))[1])
        folders = [tiny / f"member{number}" for number in range(len(configs))]
        outcomes = run_population(configs, folders, say=lambda line: None)
    return outcomes, folders, programs[0]


def test_one_that_diverges_fails_alone(finished):
    outcomes, folders, _ = finished
    assert [outcome.status for outcome in outcomes] == ["done"] * 4 + ["failed", "done", "done"]
    assert "training has diverged" in json.loads((folders[4] / "failed.json").read_text())["error"] == outcomes[4].error
    assert not (folders[4] / "result.json").exists()


def test_one_whose_patience_is_over_ends_alone(finished):
    """Its loss cannot fall: the second evaluation is its last."""
    assert [len(losses(folder)) for folder in finished[1]] == [8, 8, 8, 8, 1, 8, 4]
    last = json.loads((finished[1][6] / "result.json").read_text())["evaluations"][-1]
    assert last["step"] == 4 and "test_loss" in last


@pytest.mark.parametrize("number", [1, 5])
def test_a_member_is_its_solo_run(finished, configs, tmp_path, number):
    alone = run(configs[number], tmp_path)
    there = finished[1][number]
    np.testing.assert_allclose(losses(there), losses(alone), rtol=1e-5)
    assert {path.relative_to(alone) for path in alone.rglob("*") if path.suffix in (".json", ".md", ".png", ".jsonl")} == {
        path.relative_to(there) for path in there.rglob("*") if path.suffix in (".json", ".md", ".png", ".jsonl")
    }
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (there, alone))
    for field in ("config", "data", "trainable", "methods", "base"):
        assert ours[field] == theirs[field], field
    assert ours["evaluations"][-1]["test_loss"] == pytest.approx(theirs["evaluations"][-1]["test_loss"], rel=1e-4)
    for folder in (there, alone):
        assert (folder / "checkpoints" / "00000008" / "checkpoint.json").exists()


def test_rows_behind_a_members_rank_stay_zero(finished, configs):
    stack = finished[2].stacks[0]
    state = {path: np.concatenate([chunk[path] for chunk in stack.state]) for path in stack.state[0]}
    a = state["trainable/blocks/attn/q/kernel/default/a"].reshape(-1, 2, 6, 32)
    assert len(a) >= 4 and np.abs(a[:, :, :2]).min() > 0
    unused = {0: 4, 1: 2, 2: 6, 3: 4}  # the order of their places
    for place, rank in unused.items():
        for path, leaf in state.items():
            if path.startswith(("trainable/", "optimiser/")) and path.endswith(("default/a", "default/b")):
                assert not np.any(leaf[place, :, rank:]), (path, place)


def test_members_come_and_go_without_another_compilation(finished):
    assert finished[2].compilations == 1


def test_a_population_that_is_done_is_left_alone(finished, configs, tiny):
    stamps = [(folder / "result.json").stat().st_mtime_ns for folder in finished[1][:4]]
    again = run_population(configs[:4], finished[1][:4], say=lambda line: None)
    assert [outcome.status for outcome in again] == ["done"] * 4
    assert [(folder / "result.json").stat().st_mtime_ns for folder in finished[1][:4]] == stamps


@pytest.mark.slow  # a population that is trained twice: twenty seconds
def test_interrupted_it_goes_on_bit_for_bit(finished, configs, tmp_path, monkeypatch):
    chosen, folders = [configs[0], configs[1]], [tmp_path / "first", tmp_path / "second"]
    whole = [tmp_path / "whole0", tmp_path / "whole1"]
    run_population(chosen, whole, say=lambda line: None)
    count = Journal.count

    def stop(self, number, *rest):
        count(self, number, *rest)
        if number == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Journal, "count", stop)
        run_population(chosen, folders, say=lambda line: None)
    assert len(losses(folders[0])) == 6
    run_population(chosen, folders, say=lambda line: None)
    for once, again in zip(whole, folders, strict=True):
        assert losses(once) == losses(again)


@pytest.mark.slow  # a population and two runs: twenty seconds
def test_a_member_goes_on_as_a_solo_run(tiny, tmp_path):
    """One that lost a comparison, and whose rank was not the highest: what it stored is what it would have stored alone."""
    pair = [config_of(tiny, lora(rank=2, dropout=0.2, alpha=3.0), learning_rate=1e-9), config_of(tiny, lora(rank=5))]
    folders = [tmp_path / "loses", tmp_path / "wins"]
    outcomes = run_population(pair, folders, halving=Halving((4,), keep=(1,)), say=lambda line: None)
    assert [outcome.status for outcome in outcomes] == ["stopped", "done"] and len(losses(folders[0])) == 4
    alone, direct = run(pair[0], folders[0]), run(pair[0], tmp_path / "direct")
    np.testing.assert_allclose(losses(alone), losses(direct), rtol=1e-5)
    assert not (alone / "stopped.json").exists() and (alone / "result.json").exists()


def test_halving_finds_the_best_in_fewer_steps_and_places(tiny, tmp_path):
    rates = [1e-6, 1e-2, 1e-5, 3e-3, 1e38]
    configs = [config_of(tiny, learning_rate=rate, warmup=0) for rate in rates]
    folders, programs = [tmp_path / str(number) for number in range(5)], []
    with pytest.MonkeyPatch.context() as patched:
        made = Program.__init__
        patched.setattr(Program, "__init__", lambda self, *rest, **more: (programs.append(self), made(self, *rest, **more))[1])
        outcomes = run_population(configs, folders, halving=Halving((2, 4), keep=(2, 1)), places=2, say=lambda line: None)
    assert [outcome.status for outcome in outcomes] == ["stopped", "done", "stopped", "stopped", "failed"]
    assert [len(losses(folder)) for folder in folders[:4]] == [2, 8, 2, 4]
    stopped = json.loads((folders[0] / "stopped.json").read_text())
    assert stopped["step"] == 2 and stopped["validation_loss"] > 0
    assert programs[0].compilations == 1 and programs[0].stacks[0].places == 2
    again = run_population(configs[:4], folders[:4], halving=Halving((2, 4), keep=(2, 1)), places=2, say=lambda line: None)
    assert [outcome.status for outcome in again] == ["stopped", "done", "stopped", "stopped"]


def test_a_point_that_cannot_be_prepared_fails_alone(tiny, tmp_path):
    broken = config_of(tiny, lora(targets=".*/qq"))
    outcomes = run_population([broken, config_of(tiny, steps=8)], [tmp_path / "broken", tmp_path / "well"], say=lambda line: None)
    assert [outcome.status for outcome in outcomes] == ["failed", "done"] and "matches no kernel" in outcomes[0].error
    assert json.loads((tmp_path / "broken" / "failed.json").read_text())["error"] == outcomes[0].error
