"""What a command line says to the launchers."""

import pytest

from peftjax.train.sweep.launchers import NAMES, as_resources, launcher


def test_every_launcher_is_there_and_knows_its_folder(tmp_path):
    assert all(callable(launcher(kind, tmp_path)) for kind in NAMES)
    assert launcher("slurm", tmp_path, resources={"gpus_per_node": 1}).keywords == {"folder": tmp_path, "resources": {"gpus_per_node": 1}}
    assert launcher("population", tmp_path, rungs=[4, 8]).keywords["halving"].rungs == (4, 8)
    assert launcher("population", tmp_path, processes=3).keywords["rest"].keywords == {"processes": 3}


@pytest.mark.parametrize(("kind", "said", "message"), [
    ("local", {"resources": {"gpus": 1}}, "the launcher local has no use for"),
    ("slurm", {"store": "gs://mine"}, "the launcher slurm has no use for 'gs://mine'; sky would have"),
    ("ray", {"rungs": [3]}, "population would have"),
])
def test_what_a_launcher_has_no_use_for_is_refused(kind, said, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        launcher(kind, tmp_path, **said)


def test_resources_are_read_as_yaml():
    assert as_resources(["timeout_min=60", "use_spot=true", "accelerators=L4:1", "cpus=4+"]) == {
        "timeout_min": 60, "use_spot": True, "accelerators": "L4:1", "cpus": "4+"}
    with pytest.raises(ValueError, match="give name=value"):
        as_resources(["spot"])
