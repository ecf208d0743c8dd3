"""Kept measurements: interrupted ones go on, and other questions are other files."""

from tiny import TINY, base

from peftjax.interop.base import Base
from peftjax.peft import lora
from peftjax.study import latency_kept
from peftjax.study.arms import Arm
from peftjax.study.latency_kept import measured
from peftjax.study.programs import Case
from peftjax.study.timing import over, spread

BASE = Base("tiny", TINY, base(), None, "f" * 64)
LINES = 3  # that are said of a case: it is begun, compiled, and timed


def test_a_case_is_measured_once_for_each_question(tmp_path):
    said = []

    def ask(cases, **more):
        return measured(BASE, [Arm("base")], cases, tmp_path, **({"rounds": 5, "unroll": False, "say": said.append} | more))

    one, kept = ask([Case("forward", 2, 3)])
    assert not kept and said[0] == "forward 2x3: 1 arms are compiled and timed" and len(said) == LINES
    both, kept = ask([Case("forward", 2, 3), Case("forward", 1, 3)])  # goes on with the second
    assert not kept and len(said) == 2 * LINES and both.rows[0] == one.rows[0] and len(both.rows) == 2
    again, kept = ask([Case("forward", 2, 3), Case("forward", 1, 3)])
    assert kept and len(said) == 2 * LINES and again == both
    ask([Case("forward", 2, 3)], rounds=6)
    assert len(said) == 3 * LINES and len(list(tmp_path.glob("forward-2x3-*.json"))) == 2


def test_sittings_are_kept_apart_and_their_rounds_count_together(tmp_path):
    said = []

    def ask(sittings):
        how = {"rounds": 5, "unroll": False, "say": said.append, "sittings": sittings}
        return measured(BASE, [Arm("base"), Arm("LoRA", (lora(rank=2),))], [Case("forward", 1, 2)], tmp_path, **how)

    one, kept = ask(1)
    two, again = ask(2)
    assert not kept and not again and len(said) == 2 * LINES  # the second adds one sitting to the first
    assert ask(1) == (two, True) and ask(2) == (two, True)  # what is there is taken
    for before, after in zip(one.rows, two.rows, strict=True):
        assert after.times[:5] == before.times and len(after.times) == 10
        assert after.seconds == spread(after.times)
    base_row, lora_row = two.rows
    assert base_row.over is None and lora_row.over == over(lora_row.times, base_row.times, sittings=(5, 5))


def test_what_was_half_written_is_not_found(tmp_path, monkeypatch):
    def broken(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(latency_kept, "measure", broken)
    try:
        measured(BASE, [Arm("base")], [Case("forward", 1, 2)], tmp_path)
    except KeyboardInterrupt:
        pass
    assert not list(tmp_path.iterdir())
