"""The log: a resumed run's file equals that of a run never stopped, and nothing half-written is taken for a line."""

import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from peftjax.train.logs import MetricsLog, read_metrics


def _write(workdir, steps, resume_at=None):
    with MetricsLog(workdir, resume_at, tensorboard=False) as log:
        for step in steps:
            log.write(step, loss=1 / (step + 1), learning_rate=1e-3)
            if step % 3 == 0:
                log.write(step, **{"eval/loss": 2.0 - step})


@settings(max_examples=40)
@given(killed_after=st.integers(0, 12), resume_at=st.none() | st.integers(0, 12), torn=st.integers(0, 40))
def test_a_resumed_file_equals_one_never_stopped(tmp_path_factory, killed_after, resume_at, torn):
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    _write(whole, range(13))
    resume_at = None if resume_at is None else min(resume_at, killed_after)
    _write(parts, range(killed_after + 1))
    with (parts / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "loss": 0.25, "learning_rate": 0.001}'[:torn])
    _write(parts, range(0 if resume_at is None else resume_at + 1, 13), resume_at)
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_numbers_of_every_kind_come_back(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(np.int64(1), loss=jnp.float32(0.1), half=jnp.bfloat16(0.5), count=np.int32(7),
                  nothing=math.nan, far=-math.inf)
        line, = log.read()
    assert line.pop("step") == 1 and math.isnan(line.pop("nothing"))
    assert line == {"loss": float(np.float32(0.1)), "half": 0.5, "count": 7, "far": -math.inf}
    assert "NaN," in (tmp_path / "metrics.jsonl").read_text().replace('"', "")
    assert isinstance(line["count"], int)


@pytest.mark.parametrize("value", ["0.1", None, [1.0], np.ones(3), 1j, {}])
def test_what_is_not_one_number_is_refused(tmp_path, value):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        with pytest.raises(ValueError, match="loss must be one number; found "):
            log.write(1, loss=value)
        with pytest.raises(ValueError, match="'step' is the line's own step"):
            log.write(1, **{"step": 2})
    assert read_metrics(tmp_path) == []


def test_a_broken_line_is_named_and_a_torn_last_one_left_out(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2 is not JSON"):
        MetricsLog(tmp_path, resume_at=3)
    (tmp_path / "metrics.jsonl").write_text('[1]\n')
    with pytest.raises(ValueError, match="line 1 is not an object with a step"):
        read_metrics(tmp_path)


def test_a_disabled_log_touches_nothing(tmp_path):
    _write(tmp_path, range(3))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with MetricsLog(tmp_path, enabled=False) as log:
        log.write(9, loss=1.0)
        assert len(log.read()) == 4
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def _events(path):
    """(step, name, value) of the scalars in one event file: records of [length:8, crc:4, data, crc:4]."""
    data, found = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12:12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length:]
    return found


def test_every_scalar_is_in_the_event_files(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, loss=0.5)
        log.write(2, **{"loss": 0.25, "eval/exact_match": 1})
    events, = (tmp_path / "tensorboard").iterdir()
    assert _events(events) == [(1, "loss", 0.5), (2, "loss", 0.25), (2, "eval/exact_match", 1.0)]


def test_a_killed_writer_leaves_every_line_it_wrote(tmp_path):
    code = ("import os, sys; from peftjax.train.logs import MetricsLog\n"
            "log = MetricsLog(sys.argv[1], tensorboard=False)\n"
            "for step in range(100): log.write(step, loss=step / 7)\n"
            "os.kill(os.getpid(), 9)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert done.returncode == -9
    assert read_metrics(tmp_path) == [{"step": step, "loss": step / 7} for step in range(100)]
