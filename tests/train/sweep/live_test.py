"""The table of a running sweep, on a terminal and in a log."""

import io
import json
import sys
import time

from rich.console import Console

from peftjax.peft import lora
from peftjax.train.config import default_config, methods
from peftjax.train.ending import write_failure
from peftjax.train.sweep.folder import plan
from peftjax.train.sweep.live import shown


def a_sweep(folder):
    config = default_config()
    config.peft, config.data.name = methods(lora()), "ha_intents"
    return plan(config, [{"peft[0].rank": 4}, {"peft[0].rank": 8}], folder)


def until(condition):
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_a_log_gets_a_line_whenever_a_status_changes(tmp_path):
    first, second = a_sweep(tmp_path)
    out = io.StringIO()
    with shown(tmp_path, Console(file=out, width=200), every_s=0.01):
        (first.folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
        until(lambda: "1 training, 1 waiting" in out.getvalue())
        write_failure(second.folder, "it broke")
    assert out.getvalue().splitlines() == ["2 points: 2 waiting", "2 points: 1 training, 1 waiting", "2 points: 1 failed, 1 training"]


def test_a_terminal_shows_every_point_and_what_others_print_above_it(tmp_path):
    first, second = a_sweep(tmp_path)
    (first.folder / "metrics.jsonl").write_text(json.dumps({"step": 7, "loss": 0.125}) + "\n")
    write_failure(second.folder, "ValueError: it broke\nat length")
    out = io.StringIO()
    with shown(tmp_path, Console(file=out, width=120, force_terminal=True)):
        print("half a li", end="", file=sys.stderr)
        print("ne", file=sys.stderr)
        assert not sys.stderr.isatty()
    text = out.getvalue()
    assert "half a line" in text and "rank=4" in text and "7/100" in text and "0.1250" in text
    assert "failed: ValueError: it broke" in text and "at length" not in text
