"""The machine that something was measured on: what it is, and how busy it was."""

import hashlib
import json
import os
from pathlib import Path

from peftjax.train.versions import versions

DECIDE = ("platform", "devices", "processor", "cores", "jax", "jaxlib")  # what times depend on; other versions may move on


def machine() -> dict[str, str | int]:
    """`peftjax.train.versions.versions`, beside "processor" (its name, or "unknown") and "cores" (that this process may use)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return versions() | {"processor": _processor(), "cores": cores}


def machine_id(about: dict) -> str:
    """Eight hex digits of what decides about times, from `machine()`."""
    return hashlib.sha256(json.dumps({name: about.get(name) for name in DECIDE}, sort_keys=True).encode()).hexdigest()[:8]


def load() -> float:
    """Processes that ran or waited to run, mean of the last minute."""
    return os.getloadavg()[0]


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
