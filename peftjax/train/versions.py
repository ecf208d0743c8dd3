"""What a run ran on: versions of Python, of the packages that decide its numbers, and the devices."""

import importlib.metadata
import platform

PACKAGES = (
    "peftjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-dtypes", "tokenizers", "safetensors",
    "gguf", "tensorflow-datasets", "array-record", "ml-collections",
)


def versions() -> dict[str, str]:
    """Package -> version or "absent", beside "python", "platform" and "devices" (`8 x cpu`)."""
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "devices": ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)),
    } | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    """The installed version; a checkout that is on the path without being installed is absent too."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
