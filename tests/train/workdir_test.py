"""A work directory holds one run of one config, for one process at a time."""

import contextlib

import pytest

from peftjax.train.config import default_config
from peftjax.train.workdir import WorkDir, default_workdir


def test_another_config_is_refused_with_the_differences(tmp_path):
    config = default_config()
    WorkDir(tmp_path, config).close()
    config.train.seed = 3
    with pytest.raises(ValueError, match=r"train.seed: 3 \| 0"):
        WorkDir(tmp_path, config)


def test_what_is_kept_and_shown_may_change(tmp_path):
    config = default_config()
    WorkDir(tmp_path, config).close()
    config.checkpoint.every, config.log.every = 7, 3
    WorkDir(tmp_path, config).close()


def test_two_processes_at_once_are_refused(tmp_path):
    with contextlib.closing(WorkDir(tmp_path, default_config())):
        with pytest.raises(RuntimeError, match="another process is at work"):
            WorkDir(tmp_path, default_config())
    WorkDir(tmp_path, default_config()).close()


def test_evaluations_come_back_in_order_and_up_to_a_step(tmp_path):
    folder = WorkDir(tmp_path, default_config())
    for step in (100, 0, 20):
        folder.write_evaluation({"step": step, "loss": step / 3})
    assert [e["step"] for e in folder.evaluations()] == [0, 20, 100]
    assert folder.evaluations(until=20)[-1] == {"step": 20, "loss": 20 / 3}
    folder.close()


def test_default_workdir_names_config_and_fields():
    config = default_config()
    first = default_workdir("configs/quickstart.py:runlocal", config)
    config.train.seed = 1
    second = default_workdir("configs/quickstart.py:runlocal", config)
    assert first.parent.name == "runs" and first.name.startswith("quickstart-runlocal-") and first != second
