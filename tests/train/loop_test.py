"""A run from its config to its report, interrupted and not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import tiny_config

from peftjax.interop.base import load_base
from peftjax.models.decoder import Decoder
from peftjax.peft import pfeiffer
from peftjax.peft.partition import nothing
from peftjax.train.config import methods
from peftjax.train.evaluate import Evaluator
from peftjax.train.inputs import prepare
from peftjax.train.logs import read_metrics
from peftjax.train.loop import run

ROOT = Path(__file__).parents[2]
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from tiny_run import tiny_config


def get_config():
    config = tiny_config(Path({folder!r}))
    config.train.steps = 40
    config.eval.before = False
    return config
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def finished(tiny) -> Path:
    return run(tiny_config(tiny), tiny / "finished")


def test_a_run_leaves_result_report_and_curves(finished):
    result = json.loads((finished / "result.json").read_text())
    assert [e["step"] for e in result["evaluations"]] == [0, 6, 12]
    assert result["evaluations"][0]["forgetting"] == 0.0
    assert result["evaluations"][-1]["loss"] < result["evaluations"][0]["loss"]
    assert result["trainable"]["parameters"] == 2 * 4 * (32 + 32 + 2 * (32 + 16) + 32 + 32 + 2 * (32 + 64) + 64 + 32)
    assert len(result["predictions"]) == 5 and {"before", "after", "reference", "exact_match_after"} <= set(result["predictions"][0])
    assert result["memory"]["peak_rss_bytes"] > 0 and result["timings"]["start_to_first_step_s"] > 0
    report = (finished / "report.md").read_text()
    assert "exact match" in report.replace("_", " ") and "forgetting" in report
    assert list(finished.glob("**/*.png"))


def test_losses_are_logged_for_every_step_and_fall(finished):
    losses = [line["loss"] for line in read_metrics(finished) if "loss" in line]
    assert len(losses) == 12 and losses[-1] < losses[0]


def test_the_same_command_finds_a_run_done(finished, tiny, capsys):
    stamp = (finished / "result.json").stat().st_mtime_ns
    run(tiny_config(tiny), finished)
    assert "is done" in capsys.readouterr().out
    assert (finished / "result.json").stat().st_mtime_ns == stamp


def test_a_folder_of_another_config_is_refused(finished, tiny):
    config = tiny_config(tiny)
    config.peft[0].rank = 8
    with pytest.raises(ValueError, match="another config"):
        run(config, finished)


def test_a_checkpoint_of_other_methods_is_refused(finished, tiny, tmp_path):
    """Even where somebody moved it under another config: the checkpoint itself says what it fits."""
    config = tiny_config(tiny)
    config.peft[0].alpha = 3.0
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    with pytest.raises(ValueError, match="alpha"):
        run(config, tmp_path)


def test_a_run_that_diverges_says_so(tiny, tmp_path):
    config = tiny_config(tiny)
    config.optimizer.learning_rate, config.optimizer.name, config.optimizer.clip = 1e30, "sgd", 0.0
    config.eval.before = False
    with pytest.raises(FloatingPointError, match="lower config.optimizer.learning_rate"):
        run(config, tmp_path)


def test_forgetting_without_an_evaluation_before_is_against_the_base(finished, tiny, tmp_path):
    config = tiny_config(tiny)
    config.eval.before = False
    result = json.loads((run(config, tmp_path) / "result.json").read_text())
    expected = json.loads((finished / "result.json").read_text())["evaluations"][-1]["forgetting"]
    assert result["evaluations"][-1]["forgetting"] == expected != 0.0


@pytest.mark.slow  # a run of its own: ten seconds
def test_a_trial_of_tuning_never_looks_at_the_test_set(finished, tiny, tmp_path):
    config = tiny_config(tiny)
    config.train.steps, config.eval.at_end = 2, ("validation",)
    evaluations = json.loads((run(config, tmp_path / "trial") / "result.json").read_text())["evaluations"]
    assert [(e["step"], e["split"], e["losses_of"]) for e in evaluations] == [(n, "validation", "validation") for n in (0, 2)]
    config.eval.at_end, config.eval.every = ("validation", "test"), 0
    both = run(config, tmp_path / "both")
    assert [path.name for path in sorted((both / "evaluations").iterdir())] == [
        f"{n:08d}-{split}.json" for n in (0, 2) for split in ("test", "validation")
    ]
    result = json.loads((both / "result.json").read_text())
    assert result["evaluations"][2]["validation_loss"] == pytest.approx(evaluations[1]["validation_loss"])
    assert {row["id"] for row in result["predictions"]} == {
        row["id"] for row in json.loads((finished / "result.json").read_text())["predictions"]
    }
    report = (both / "report.md").read_text()
    assert "## Metrics on validation" in report and "## Metrics on test" in report


def test_a_run_whose_patience_is_over_ends_and_ends_there_again(tiny, tmp_path):
    config = tiny_config(tiny)
    config.optimizer.learning_rate, config.eval.every, config.eval.patience, config.eval.before = 0.0, 2, 2, False
    first = run(config, tmp_path)
    evaluations = json.loads((first / "result.json").read_text())["evaluations"]
    assert [(e["step"], e["split"]) for e in evaluations] == [(n, "validation") for n in (2, 4, 6)] + [(6, "test")]
    assert len([line for line in read_metrics(first) if "loss" in line]) == 6
    (first / "result.json").unlink()
    run(config, first)
    assert json.loads((first / "result.json").read_text())["evaluations"] == evaluations
    assert len([line for line in read_metrics(first) if "loss" in line]) == 6


@pytest.mark.slow  # a whole run
def test_pmap_runs_from_config_to_report(finished, tiny, tmp_path):
    config = tiny_config(tiny)
    config.train.parallel, config.peft[0].dropout = "pmap", 0.0
    mapped = json.loads((run(config, tmp_path / "pmap") / "result.json").read_text())["evaluations"]
    config.train.parallel = "jit"
    whole = json.loads((run(config, tmp_path / "jit") / "result.json").read_text())["evaluations"]
    assert [e["loss"] for e in mapped] == pytest.approx([e["loss"] for e in whole], rel=1e-5)


def test_a_report_that_was_not_written_is_written(finished, tiny):
    (finished / "report.md").unlink()
    run(tiny_config(tiny), finished)
    assert (finished / "report.md").exists()


@pytest.mark.slow  # a run of its own: eight seconds; evaluate_test holds an untouched base to a forgetting of 0
def test_before_training_the_base_itself_is_measured(tiny, tmp_path):
    """Also where the adapters do not start as the base."""
    config = tiny_config(tiny)
    config.peft = methods(pfeiffer(size=8, init="bert"))
    config.train.steps = 2
    first = json.loads((run(config, tmp_path) / "result.json").read_text())["evaluations"][0]
    base = load_base(config.base.uri)
    evaluator = Evaluator(
        Decoder(base.config), base.tokenizer, config.eval, prepare(config, base.tokenizer).held, config.data.length
    )
    expected = evaluator.run(0, "test", nothing(base.params), base.params, None)
    assert first["general_loss"] == pytest.approx(expected["general_loss"], rel=1e-6) and first["forgetting"] == 0.0
    assert first["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def command(config: Path, workdir: Path) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "train.py"), f"--config={config}", f"--workdir={workdir}"]


@pytest.mark.slow  # starts the script several times: forty seconds
def test_killed_at_any_moment_the_same_command_goes_on_bit_for_bit(tiny, tmp_path):
    """Killed three times by SIGKILL, each time a little further on; the losses equal those of a run never stopped."""
    tiny_config(tiny)
    config = tmp_path / "killed.py"
    config.write_text(CONFIG.format(tests=str(ROOT / "tests"), folder=str(tiny)))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command(config, tmp_path / "whole"), check=True, capture_output=True, env=environment)
    for lines in (5, 14, 27):
        process = subprocess.Popen(command(config, tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
        while len(read_metrics(tmp_path / "killed")) < lines:
            try:
                code = process.wait(timeout=0.02)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"ended with {code} before it was killed: {process.stderr.read().decode()[-2000:]}")
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    done = subprocess.run(command(config, tmp_path / "killed"), check=True, capture_output=True, text=True, env=environment)
    assert "resumed at step" in done.stdout
    whole, killed = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "killed")
    assert [line for line in killed if "loss" in line] == [line for line in whole if "loss" in line]
    predictions = [json.loads((tmp_path / name / "result.json").read_text())["evaluations"][-1] for name in ("whole", "killed")]
    assert predictions[0] == predictions[1]
    assert np.isfinite(predictions[0]["loss"])
