"""Versions name what decides a run's numbers."""

import json

import jax
import numpy as np

from peftjax.train.versions import PACKAGES, versions


def test_every_package_and_the_devices_are_named():
    found = versions()
    assert found["jax"] == jax.__version__ and found["numpy"] == np.__version__
    assert found["devices"] == f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    assert set(PACKAGES) <= found.keys() and json.loads(json.dumps(found)) == found
    assert all(isinstance(version, str) and version for version in found.values())
