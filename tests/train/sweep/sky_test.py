"""Tasks for SkyPilot: what is written, what is handed in, and what is refused. SkyPilot's own schema took the task below (0.14.1)."""

import json
import os

import pytest
import yaml

from peftjax.peft import lora
from peftjax.train.config import default_config, methods
from peftjax.train.sweep.folder import plan
from peftjax.train.sweep.job import ROOT, alone
from peftjax.train.sweep.sky import JOIN, fetch, sky, task


@pytest.fixture
def jobs(tmp_path):
    config = default_config()
    config.peft, config.data.name = methods(lora()), "ha_intents"
    return alone(plan(config, [{"peft[0].rank": 4}, {"peft[0].rank": 8}], tmp_path / "sweep"))


def test_a_task_mounts_the_bucket_and_trains_in_it(jobs):
    name = jobs[0].name
    assert task(jobs[0], "gs://mine/rates", {"accelerators": "tpu-v5e-8", "use_spot": True, "num_nodes": 2}) == {
        "name": f"run-{name.replace('=', '-')}", "workdir": str(ROOT), "num_nodes": 2,
        "resources": {"accelerators": "tpu-v5e-8", "use_spot": True},
        "file_mounts": {
            "/sweep": {"source": "gs://mine/rates", "mode": "MOUNT"},
            f"/tmp/planned/{name}/config.json": str(jobs[0].folders[0] / "config.json"),
        },
        "setup": "pip install -e '.[tpu]'",
        "run": f"{JOIN}python ./scripts/train.py --config=./configs/stored.py:/tmp/planned/{name}/config.json "
               f"--workdir=/sweep/{name} $JOIN\n",
    }
    assert task(jobs[0], "gs://mine", {})["setup"] == "pip install -e '.'"
    assert task(jobs[0], "gs://mine", {"accelerators": "L4:1"})["setup"] == "pip install -e '.[gpu]'"


def test_jobs_are_handed_in_once(jobs, tmp_path, monkeypatch):
    """By a `sky` that writes down what it is told."""
    command = tmp_path / "bin" / "sky"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    said = []
    sky(jobs, tmp_path / "sweep", "s3://mine", submit=False, say=said.append)
    assert not (tmp_path / "told").exists() and sum(line.startswith("sky jobs launch --yes") for line in said) == 2
    sky(jobs[:1], tmp_path / "sweep", "s3://mine", say=said.append)
    sky(jobs, tmp_path / "sweep", "s3://mine", say=said.append)
    told = [line.split()[-1] for line in (tmp_path / "told").read_text().splitlines()]
    assert len(told) == 2 and {yaml.safe_load(open(path))["name"] for path in told} == {f"run-{job.name.replace('=', '-')}" for job in jobs}
    assert json.loads((tmp_path / "sweep" / "sky" / "submitted.json").read_text()) == [job.name for job in jobs]


def test_what_cannot_be_there_is_refused(jobs, tmp_path):
    with pytest.raises(ValueError, match="name a bucket"):
        sky(jobs, tmp_path, "mine")
    stored = jobs[0].folders[0] / "config.json"
    config = json.loads(stored.read_text())
    stored.write_text(json.dumps(config | {"data": config["data"] | {"name": "mine.jsonl"}}))
    with pytest.raises(ValueError, match="config.data.name is 'mine.jsonl', a file of this machine"):
        task(jobs[0], "gs://mine", {})


def test_the_results_are_fetched_by_the_tool_of_the_store():
    assert fetch("s3://a/b", "here") == ["aws", "s3", "sync", "s3://a/b", "here"]
    assert fetch("gs://a", "here")[0] == "gcloud"
