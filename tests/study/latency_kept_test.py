"""Kept measurements: interrupted ones go on, and other questions are other files."""

from tiny import TINY, base

from peftjax.interop.base import Base
from peftjax.study import latency_kept
from peftjax.study.arms import Arm
from peftjax.study.latency_kept import measured
from peftjax.study.programs import Case

BASE = Base("tiny", TINY, base(), None, "f" * 64)


def test_a_case_is_measured_once_for_each_question(tmp_path):
    said = []

    def ask(cases, **more):
        return measured(BASE, [Arm("base")], cases, tmp_path, **({"rounds": 5, "unroll": False, "say": said.append} | more))

    one, kept = ask([Case("forward", 2, 3)])
    assert not kept and len(said) == 1
    both, kept = ask([Case("forward", 2, 3), Case("forward", 1, 3)])  # goes on with the second
    assert not kept and len(said) == 2 and both.rows[0] == one.rows[0] and len(both.rows) == 2
    again, kept = ask([Case("forward", 2, 3), Case("forward", 1, 3)])
    assert kept and len(said) == 2 and again == both
    ask([Case("forward", 2, 3)], rounds=6)
    assert len(said) == 3 and len(list(tmp_path.glob("forward-2x3-*.json"))) == 2


def test_what_was_half_written_is_not_found(tmp_path, monkeypatch):
    def broken(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(latency_kept, "measure", broken)
    try:
        measured(BASE, [Arm("base")], [Case("forward", 1, 2)], tmp_path)
    except KeyboardInterrupt:
        pass
    assert not list(tmp_path.iterdir())
