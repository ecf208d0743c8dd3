"""A search over runs whose loss is a known function of the learning rate: no training, but folders as runs leave them."""

import json
import math

import pytest

from peftjax.peft import lora
from peftjax.train.config import default_config, methods
from peftjax.train.ending import write_failure
from peftjax.train.points import choice, log_uniform
from peftjax.train.sweep.folder import planned
from peftjax.train.sweep.search import best_point, search
from peftjax.train.sweep.standing import standings

optuna = pytest.importorskip("optuna")
RANGES = {"optimizer.learning_rate": log_uniform(1e-5, 1.0), "peft": choice([lora(rank=2)], [lora(rank=4)])}


def config():
    made = default_config()
    made.peft, made.data.name = methods(lora()), "ha_intents"
    return made


def known(jobs):
    """The best rate is 1e-3 with rank 4; rates over 0.1 diverge; low ones are stopped early."""
    for folder in (folder for job in jobs for folder in job.folders):
        stored = json.loads((folder / "config.json").read_text())
        rate, rank = stored["optimizer"]["learning_rate"], stored["peft"][0]["rank"]
        loss, step = abs(math.log10(rate) + 3) + (rank == 2), 100 if rate > 1e-4 else 20
        if rate > 0.1:
            write_failure(folder, FloatingPointError("loss at step 3 is nan: training has diverged"))
            continue
        if step < 100:
            (folder / "stopped.json").write_text(json.dumps({"step": step, "validation_loss": loss}))
            continue
        (folder / "evaluations").mkdir()
        (folder / "evaluations" / f"{step:08d}.json").write_text(json.dumps(
            {"step": step, "split": "validation", "validation_loss": loss, "metrics": {}, "predictions": []}))
        (folder / "result.json").write_text("{}")


def run(folder, trials, launcher=known, **options):
    return search(config(), RANGES, folder, launcher, trials=trials, batch=4, say=lambda _: None, live=False, **options)


def test_a_search_finds_the_optimum_and_goes_on_where_it_was(tmp_path):
    whole = run(tmp_path / "whole", 28)
    point = best_point(whole, RANGES)
    assert 3e-4 < point["optimizer.learning_rate"] < 3e-3 and point["peft"][0].rank == 4
    states = {trial.state.name for trial in whole.trials}
    assert states == {"COMPLETE", "PRUNED"} and len(standings(tmp_path / "whole")) == len(whole.trials) == 28
    diverged = [trial for trial in whole.trials if trial.params["optimizer.learning_rate"] > 0.1]
    assert diverged and all(trial.intermediate_values == {0: math.inf} for trial in diverged)

    def interrupted(jobs):
        if len(planned(tmp_path / "parts")) > 8:
            known(jobs[:2])
            raise KeyboardInterrupt
        known(jobs)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", 28, interrupted)
    parts = run(tmp_path / "parts", 28)
    assert [trial.params for trial in parts.trials] == [trial.params for trial in whole.trials]
    assert [trial.value for trial in parts.trials] == [trial.value for trial in whole.trials]
    assert len(run(tmp_path / "parts", 28, lambda jobs: pytest.fail("there is nothing left")).trials) == 28


def test_another_search_in_the_folder_is_refused(tmp_path):
    run(tmp_path, 1)
    with pytest.raises(ValueError, match="holds a search by loss over"):
        run(tmp_path, 1, metric="exact_match")


def test_a_run_without_validation_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="without a value of a metric on validation rows"):
        run(tmp_path, 1, lambda jobs: [(job.folders[0] / "result.json").write_text("{}") for job in jobs])
