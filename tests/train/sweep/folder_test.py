"""What a sweep's folder says, and what it refuses. Nothing is trained here."""

import json

import pytest

from peftjax.peft import lora
from peftjax.train.config import check, config_hash, default_config, loaded, methods, plain
from peftjax.train.ending import write_failure
from peftjax.train.points import product
from peftjax.train.stored_config import stored_config
from peftjax.train.sweep.folder import default_folder, plan, planned
from peftjax.train.sweep.standing import standings

POINTS = product({"peft[0].rank": (4, 8), "optimizer.learning_rate": (1e-3, 3e-3)})


def config():
    made = default_config()
    made.peft = methods(lora(rank=2, rank_pattern={".*/q": 3}))
    made.data.name, made.data.options = "ha_intents", {"languages": ("en",)}
    return made


def test_each_point_has_a_folder_with_its_config(tmp_path):
    runs = plan(config(), POINTS, tmp_path)
    assert [run.point for run in runs] == POINTS == [point for point, _ in planned(tmp_path)]
    assert runs[0].folder.name == f"rank=4_learning_rate=0.001-{config_hash(runs[0].config)}"
    for run in runs:
        stored = stored_config(run.folder / "config.json")
        assert plain(stored) == plain(run.config) and stored.data.options.languages == ("en",)
    assert {row.status for row in standings(tmp_path)} == {"waiting"} and len(standings(tmp_path)) == 4


def test_planning_again_changes_nothing_and_more_points_are_added(tmp_path):
    first = [run.folder for run in plan(config(), POINTS[:2], tmp_path)]
    assert [run.folder for run in plan(config(), POINTS[:2], tmp_path)] == first
    assert [run.folder for run in plan(config(), POINTS[3:], tmp_path)] != first
    assert [point for point, _ in planned(tmp_path)] == [*POINTS[:2], POINTS[3]]


def test_points_that_come_to_one_config_are_one_run(tmp_path):
    runs = plan(config(), [{"peft[0].rank": 2}, {}, {"optimizer.learning_rate": 1e-3}], tmp_path)
    assert len(runs) == 3 and {run.folder for run in runs} == {runs[0].folder} and len(planned(tmp_path)) == 1
    assert plan(config(), [{"train.steps": 100}], tmp_path)[0].folder == runs[0].folder


def test_another_config_is_refused_and_what_is_free_may_change(tmp_path):
    plan(config(), POINTS, tmp_path)
    other = config()
    other.log.every = 7
    plan(other, POINTS, tmp_path)
    other.train.steps = 7
    with pytest.raises(ValueError, match=r"another config \(asked \| there\): train.steps: 7 \| 100"):
        plan(other, POINTS, tmp_path)


def test_a_point_that_does_not_fit_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"point rank=0: LoRA rank 0 is not positive"):
        plan(config(), [{"peft[0].rank": 0}], tmp_path / "new")
    with pytest.raises(ValueError, match="did you mean 'rank'"):
        plan(config(), [{"peft[0].rnk": 0}], tmp_path / "new")
    with pytest.raises(ValueError, match="no points"):
        plan(config(), [], tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="no sweep was started"):
        planned(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_default_folder_depends_on_config_and_points():
    name = "configs/sweeps/lora_rates.py:runlocal"
    found = {default_folder(name, config(), points) for points in (POINTS, POINTS[:2], POINTS)}
    assert len(found) == 2 and all(path.name.startswith("lora_rates-runlocal-") for path in found)


def test_a_run_stands_where_its_folder_says(tmp_path):
    waiting, training, failed = (run.folder for run in plan(config(), POINTS[:3], tmp_path))
    (training / "metrics.jsonl").write_text(json.dumps({"step": 3, "loss": 0.5}) + "\n" + json.dumps({"step": 3, "eval/loss": 2.0}) + "\n{")
    write_failure(failed, FloatingPointError("loss at step 3 is nan"))
    rows = {row.folder: row for row in standings(tmp_path)}
    assert rows[waiting].status == "waiting" and rows[waiting].steps == 100
    assert (rows[training].status, rows[training].step, rows[training].loss) == ("training", 3, 0.5)
    assert (rows[failed].status, rows[failed].error) == ("failed", "FloatingPointError: loss at step 3 is nan")


def test_a_stored_config_is_the_config_again(tmp_path):
    made = config()
    made.base.quantise, made.compose, made.data.labels = [["embed", "int8"]], '{"stack": ["default"]}', ("b", "a")
    made.adapters = [loaded("mine", "tone")]
    check(made)
    (tmp_path / "config.json").write_text(json.dumps(plain(made)))
    again = stored_config(tmp_path / "config.json")
    check(again)
    assert plain(again) == plain(made) and config_hash(again) == config_hash(made)
    (tmp_path / "config.json").write_text(json.dumps(plain(made) | {"trian": {"steps": 3}}))
    with pytest.raises(ValueError, match="did you mean 'train'"):
        stored_config(tmp_path / "config.json")
