"""A measurement on a tiny base from end to end, and its tables and pictures on numbers that are told."""

import dataclasses
import json

import pytest
from tiny import TINY, base

from peftjax.interop.base import Base
from peftjax.peft import ia3, lora, pfeiffer
from peftjax.study.arms import Arm, Size
from peftjax.study.latency import Latency, Row, measure
from peftjax.study.latency_plot import write_plot
from peftjax.study.latency_table import as_data, as_table, from_data
from peftjax.study.programs import Case
from peftjax.study.timing import Ratio, Spread

BASE = Base("tiny", TINY, base(), None, "f" * 64)
PROMPT, TOKEN, STEP = Case("forward", 2, 3), Case("decode", 2), Case("train", 2, 8)


def told() -> Latency:
    """A measurement by hand: LoRA takes 10 % more for a prompt, and the tokens were too noisy."""
    def row(arm, case, ratio):
        return Row(arm, case, Spread(0.02, 0.019, 0.021), ratio, "base", (0.02,) * 30, 10**6, 2 * 10**6, 0.5)

    rows = [
        row("base", PROMPT, None), row("LoRA", PROMPT, Ratio(1.1, 1.08, 1.12)), row("base", TOKEN, None),
        row("LoRA", TOKEN, Ratio(1.2, 1.0, 1.5)), dataclasses.replace(row("LoRA", STEP, None), against="LoRA"),
    ]
    sizes = {"base": Size(0, 0, 10**6, None), "LoRA": Size(500, 2000, 10**6 + 2000, True)}
    about = {"devices": "1 x cpu", "processor": "a processor", "cores": 2, "jax": "0"}
    return Latency("tiny", "f", None, True, sizes, rows, {"IA3": "why not"}, about, (0.1, 0.2))


@pytest.mark.slow  # compiles a program for each arm and case: fifteen seconds
def test_all_arms_are_timed_in_all_cases_that_they_can_be_in():
    arms = [
        Arm("base"), Arm("LoRA", (lora(rank=2),)), Arm("merged", (lora(rank=2),), form="merged"),
        Arm("bank", (pfeiffer(size=2),), form="bank", adapters=2), Arm("IA3 bank", (ia3(),), form="bank", adapters=2),
    ]
    cases = [PROMPT, TOKEN, Case("decode", 1), STEP]
    found = measure(BASE, arms, cases, rounds=5, say=lambda text: None)
    assert {(row.arm, str(row.case)) for row in found.rows} == {
        *((arm, case) for arm in ("base", "LoRA", "merged", "bank") for case in ("forward 2x3", "decode 2")),
        *((arm, "decode 1") for arm in ("base", "LoRA", "merged")), ("LoRA", "train 2x8"),
    }
    assert set(found.refused) == {"IA3 bank", "bank, batches of one row"} and "a bank holds LoRA" in found.refused["IA3 bank"]
    assert all(row.seconds.median > 0 and len(row.times) == 5 and row.argument_bytes > 0 for row in found.rows)
    assert all((row.over is None) == (row.arm == row.against) for row in found.rows)
    assert found.row("LoRA", STEP).temporary_bytes > 0 and found.row("bank", STEP) is None
    assert from_data(json.loads(json.dumps(as_data(found)))) == found


def test_scanned_layers_are_timed_too_where_a_method_leaves_some_out():
    arms = [Arm("base"), Arm("upper", (lora(rank=2, layers=(1,)),))]
    found = measure(BASE, arms, [PROMPT], rounds=5, unroll=False, say=lambda text: None)
    assert [row.arm for row in found.rows] == ["base", "upper"] and not found.unroll


def test_an_encoder_makes_no_tokens():
    from tiny_encoder import TINY as ENCODER

    with pytest.raises(TypeError, match="encoder"):
        measure(Base("enc", ENCODER, {}, None, ""), [Arm("base")], [PROMPT])


def test_the_table_tells_what_is_a_result_and_what_is_not():
    table = as_table(told())
    assert "| base | 20.0 ms (19.0-21.0) | 20.0 ms (19.0-21.0) |" in table
    assert "| LoRA | 1.100 [1.080, 1.120] | discarded |" in table
    assert "wider than 10 % of the ratio: LoRA, decode 2: 1.200 [1.000, 1.500]" in table and "Left out: IA3: why not" in table
    assert "| LoRA | 2x8 | 0.02 |  | 1 | 2 |" in table and "| LoRA | 500 | 0.002 | 1 | yes |" in table


def test_plain_data_give_the_measurement_again():
    assert from_data(json.loads(json.dumps(as_data(told())))) == told()


def test_the_picture_needs_something_beside_the_base(tmp_path):
    assert write_plot(told(), tmp_path / "latency.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="nothing to draw"):
        write_plot(dataclasses.replace(told(), rows=told().rows[:1]), tmp_path / "none.png")


@pytest.mark.parametrize("kind, batch, length, message", [("decod", 1, 1, "did you mean 'decode'"), ("forward", 0, 4, "at least 1")])
def test_cases_that_cannot_be_are_said(kind, batch, length, message):
    with pytest.raises(ValueError, match=message):
        Case(kind, batch, length)
