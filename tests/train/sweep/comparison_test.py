"""The table and the picture of a sweep, from folders as runs leave them."""

import itertools
import json

import pytest

from peftjax.peft import lora
from peftjax.train.config import default_config, methods
from peftjax.train.ending import write_failure
from peftjax.train.points import chain, log_uniform, product, sample
from peftjax.train.sweep.comparison import edges, write_comparison
from peftjax.train.sweep.folder import plan
from peftjax.train.sweep.picture import draw_panel, swept
from peftjax.train.sweep.score import scores

RESULT = {"trainable": {"parameters": 1234}, "timings": {"train_s": 2.0}}


def a_sweep(folder, losses, points):
    """Work directories with a validation and a later test evaluation each; None fails, a string only begins."""
    config = default_config()
    config.peft, config.data.name = methods(lora()), "ha_intents"
    for run, loss in zip(plan(config, points, folder), losses, strict=True):
        if loss is None:
            write_failure(run.folder, "it | broke\nhere")
            continue
        (run.folder / "evaluations").mkdir()
        for split, value in (("test", 100.0 - loss), ("validation", loss)):
            metric = {"mean": value / 10, "low": value / 10 - 0.01, "high": value / 10 + 0.01, "n": 5}
            (run.folder / "evaluations" / f"00000100-{split}.json").write_text(json.dumps(
                {"step": 100, "split": split, f"{split}_loss": value, "metrics": {"exact_match": metric}, "predictions": []}))
        (run.folder / "result.json").write_text(json.dumps(RESULT))


POINTS = chain(
    product({"peft[0].rank": (4, 8), "optimizer.learning_rate": (1e-4, 1e-3, 1e-2)}), product({"optimizer.name": ["sgd"]})
)


def test_points_are_sorted_by_validation_and_failures_are_listed(tmp_path):
    a_sweep(tmp_path, [3.0, 2.0, 4.0, 2.5, 1.0, None, 9.0], POINTS)
    text = write_comparison(tmp_path).read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split("|")[5].strip() for row in rows[2:9]] == ["1.0000", "2.0000", "2.5000", "3.0000", "4.0000", "9.0000", ""]
    assert "it \\| broke ⏎ here" in text and "optimum may lie beyond" not in text
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert [one.value for one in scores(tmp_path, "exact_match")][:2] == [0.9, 0.4]
    assert "lora_plus" not in text and "1,234" in text


def test_values_that_a_search_drew_are_short(tmp_path):
    points = [{"optimizer.learning_rate": 0.005059803874660437}, {"optimizer.learning_rate": 1e-05, "peft[0].rank": 4}]
    a_sweep(tmp_path, [1.0, 2.0], points)
    rows = [line for line in write_comparison(tmp_path).read_text().splitlines() if line.startswith("| ")]
    assert [row.split("|")[2].strip() for row in rows[2:]] == ["0.0050598", "1e-05"] and rows[3].split("|")[3].strip() == "4"


def test_a_best_value_at_the_edge_is_said(tmp_path):
    a_sweep(tmp_path, [3.0, 2.0, 1.0], product({"optimizer.learning_rate": (1e-4, 1e-3, 1e-2)}))
    assert edges(scores(tmp_path)) == [
        "The best point has the highest `optimizer.learning_rate` that was tried (0.01): the optimum may lie beyond it."]


def test_swept_fields_are_those_with_several_values(tmp_path):
    a_sweep(tmp_path, [1.0] * 4, product({"train.seed": (3, 1), "optimizer.name": ["sgd", "adamw"], "optimizer.clip": [0.5]}))
    assert swept(scores(tmp_path)) == {"train.seed": [1, 3], "optimizer.name": ["sgd", "adamw"]}


def test_an_unknown_metric_is_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'exact_match'"):
        scores(tmp_path, "exact_mach")


def test_labels_of_many_rates_stand_apart(tmp_path):
    """As a search draws them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rates = [point["rate"] for point in sample(24, {"rate": log_uniform(1e-4, 3e-2)})]
    a_sweep(tmp_path, [1.0 + rate for rate in rates], [{"optimizer.learning_rate": rate} for rate in rates])
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    draw_panel(axes, "optimizer.learning_rate", sorted(rates), scores(tmp_path), "loss")
    canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert 4 <= len(boxes) <= 9 and all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
