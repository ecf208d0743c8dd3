"""Launcher: clouds and TPU pods, through SkyPilot's managed jobs (the extra `sky`, better in an environment of its own).

    sky/learning_rate-0.001-rank-8-1f0c2a9b.yaml      the task of a job; its work directories are in a bucket that the machine mounts
    sky/submitted.json                                jobs that were handed in; they are not handed in twice

A machine that is taken away is replaced by SkyPilot, which gives the same command, and the run goes on from its last checkpoint. On several
hosts (`num_nodes`, or a pod) each gives the command with `--multihost`. The sweep's folder here is not the one there: `fetch` says how
the results come; when they are here, the same sweep command makes the comparison.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from peftjax.files import replacing
from peftjax.interop.tiny import PREFIX
from peftjax.train.sweep.job import ROOT, Job

THERE = PurePosixPath("/sweep")  # where the bucket is mounted
PLANNED = PurePosixPath("/tmp/planned")  # where the stored configs are copied to
SCHEMES = ("gs", "s3", "r2", "https", "cos", "oci", "nebius")
PORT = 8476
JOIN = (  # on one host nothing; on several, what tells them of each other
    'JOIN=""\n'
    'if [ "${SKYPILOT_NUM_NODES:-1}" -gt 1 ]; then\n'
    f'  JOIN="--multihost --coordinator=$(echo "$SKYPILOT_NODE_IPS" | head -n1):{PORT}'
    ' --processes=$SKYPILOT_NUM_NODES --process=$SKYPILOT_NODE_RANK"\n'
    "fi\n"
)


def sky(
    jobs: Sequence[Job], folder: str | Path, store: str, resources: Mapping[str, Any] | None = None, *, submit: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Writes the tasks and hands them in; does not wait for them.

    Args:
        jobs: to be trained, one run each.
        folder: of the sweep, here.
        store: address of a bucket, or of a folder in one, `gs://mine/sweeps/rates`: the work directories are there.
        resources: what a job takes, as SkyPilot's task has it: accelerators, use_spot, infra, cpus, memory, ...; num_nodes too.
        submit: False only writes the files and says the commands.
        say: is told the commands.

    Raises:
        ValueError: no such store, or a run that needs files of this machine.
        FileNotFoundError: SkyPilot is not installed.
        subprocess.CalledProcessError: of its command.
    """
    if not re.fullmatch(rf"({'|'.join(SCHEMES)})://.+", store):
        raise ValueError(f"--store is {store!r}; name a bucket that the machines can reach, as in gs://mine/sweeps/rates")
    own = Path(folder).absolute() / "sky"
    noted_at = own / "submitted.json"
    noted = json.loads(noted_at.read_text()) if noted_at.exists() else []
    say(f"the work directories are in {store}; this brings them here: {shlex.join(fetch(store, folder))}")
    for job in jobs:
        path = own / f"{task_name(job)}.yaml"
        with replacing(path) as partial:
            partial.write_text(yaml.safe_dump(task(job, store, resources or {}), sort_keys=False))
        words = ["sky", "jobs", "launch", "--yes", "--detach-run", str(path)]
        if job.name in noted:
            say(f"{job.name} was handed in before: see `sky jobs queue`; take it out of {noted_at} to hand it in again")
            continue
        say(shlex.join(words))
        if submit:
            if shutil.which("sky") is None:
                raise FileNotFoundError("the launcher sky needs SkyPilot's command `sky`: pip install 'peftjax[sky]', or use "
                                        "--nosubmit and give the commands where it is")
            subprocess.run(words, check=True)
            noted.append(job.name)
            with replacing(noted_at) as partial:
                partial.write_text(json.dumps(noted, indent=1))


def task(job: Job, store: str, resources: Mapping[str, Any]) -> dict[str, Any]:
    """The SkyPilot task of a job, as data.

    Raises:
        ValueError: several runs in one job, or a run whose base or data are files of this machine.
    """
    if len(job.folders) > 1:
        raise ValueError(f"a job of SkyPilot trains one run; {job.name} has {len(job.folders)}")
    require_portable(job.folders[0])
    resources = dict(resources)
    nodes = resources.pop("num_nodes", 1)
    accelerators = str(resources.get("accelerators", ""))
    extra = "[tpu]" if accelerators.startswith("tpu") else "[gpu]" if accelerators else ""
    there = Job((PLANNED / job.name,), "python", PurePosixPath("."))
    command = [word for word in there.command if not word.startswith("--workdir")] + [f"--workdir={THERE / job.name}"]
    return {
        "name": task_name(job), "workdir": str(ROOT), "num_nodes": nodes, "resources": resources,
        "file_mounts": {
            str(THERE): {"source": store, "mode": "MOUNT"},
            str(PLANNED / job.name / "config.json"): str(job.folders[0] / "config.json"),
        },
        "setup": f"pip install -e '.{extra}'", "run": f"{JOIN}{shlex.join(command)} $JOIN\n",
    }


def task_name(job: Job) -> str:
    """The job's name as SkyPilot takes it: letters, digits and dashes, a letter first."""
    return "run-" + re.sub(r"[^a-z0-9.]+", "-", job.name.lower()).strip("-.")


def fetch(store: str, folder: str | Path) -> list[str]:
    """The command that brings the results here."""
    if store.startswith("s3://"):
        return ["aws", "s3", "sync", store, str(folder)]
    return ["gcloud", "storage", "rsync", "--recursive", store, str(folder)] if store.startswith("gs://") else \
        ["rclone", "sync", store, str(folder)]


def require_portable(folder: Path) -> None:
    """Refuses a run that reads files of this machine: the one in the cloud has none of them."""
    config = json.loads((folder / "config.json").read_text())
    named = [(f"{section}.{field}", config[section][field]) for section, field in (("base", "uri"), ("data", "name"), ("adapter", "path"))]
    named += [(f"adapters[{number}].path", one["path"]) for number, one in enumerate(config["adapters"])]
    for field, value in named:
        there = value.startswith(f"{THERE}/")
        here = Path(value).is_absolute() or Path(value).suffix == ".jsonl" or value.startswith(PREFIX) or Path(value).exists()
        if value and here and not there:
            raise ValueError(f"config.{field} is {value!r}, a file of this machine, which the one in the cloud does not have; "
                             f"name a package, a hub id or a built-in set, or a file in the bucket, {THERE}/...")
