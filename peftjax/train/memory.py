"""Peak memory of this process and of its devices."""

import resource
import sys
from pathlib import Path


def peak_memory_bytes() -> dict[str, int]:
    """{"peak_rss_bytes", "peak_device_bytes"}; the second is the largest of the local devices, and only where known.

    On Linux the resident peak is read from /proc, because what `getrusage` says starts at the peak of the process that
    started this one.
    """
    import jax

    found = {"peak_rss_bytes": _peak_rss()}
    statistics = [device.memory_stats() for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in statistics if entry and "peak_bytes_in_use" in entry]
    return found | ({"peak_device_bytes": max(peaks)} if peaks else {})


def _peak_rss() -> int:
    """Peak resident bytes of this process."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others KiB
