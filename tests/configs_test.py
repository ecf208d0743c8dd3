"""The configs of the repository: every one builds, passes the checks, and says in its docstring how to run it."""

import importlib.util
from pathlib import Path

import jax
import pytest
from tiny import SMOL

from peftjax.models.decoder import abstract_params
from peftjax.peft import attach, partition
from peftjax.peft.partition import size
from peftjax.peft.spec import from_data
from peftjax.train.config import check, config_hash
from peftjax.train.points import points_of, with_point

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem != "stored")  # which is whatever a run stored
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.py"))


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS + SWEEPS, ids=lambda path: path.stem)
def test_config_is_complete_and_documented(path):
    module = load(path)
    config = module.get_config()
    if path.stem in ("own", "train_on"):
        config.data.name = "mine.jsonl"
    if path.stem == "train_on":
        config.adapter.path = "my-lora"
    check(config)
    assert f"--config {path.relative_to(ROOT)}" in module.__doc__
    with pytest.raises(ValueError, match="no variant 'runlocl'"):
        module.get_config("runlocl")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_point_of_a_sweep_fits_its_config(path):
    points, config = points_of(path), load(path).get_config()
    for point in points:
        check(with_point(config, point))
    assert len({config_hash(with_point(config, point)) for point in points}) == len(points) > 1


def test_variants_are_short():
    for name in ("quickstart", "quickstart_adapter", "quickstart_qlora", "icd_lora"):
        path = next(path for path in CONFIGS if path.stem == name)
        assert load(path).get_config("runlocal").train.steps <= 4


def test_quickstarts_train_about_as_many_parameters():
    counts = {}
    for path in CONFIGS:
        if path.stem.startswith("quickstart"):
            methods = [from_data(method.to_dict()) for method in load(path).get_config().peft]
            tree = jax.eval_shape(lambda p, m=methods: attach(p, m, jax.random.key(0)), abstract_params(SMOL))
            counts[path.stem] = size(partition(tree)[0])[0]
    assert counts == {"quickstart": 4_884_480, "quickstart_adapter": 4_859_880, "quickstart_qlora": 4_884_480}
