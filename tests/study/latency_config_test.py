"""Configs of latency: arms and cases from data, bases of a shape, and the study that comes with the project."""

import runpy
from pathlib import Path

import pytest

from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import abstract_params
from peftjax.study.arms import size_of
from peftjax.study.latency_config import arms_of, base_of, cases_of, default_config
from peftjax.study.programs import Case

PC2 = Path(__file__).parents[2] / "configs" / "studies" / "pc2.py"


def pc2(variant=""):
    return runpy.run_path(str(PC2))["get_config"](variant)


def test_arms_of_the_study_fit_its_small_base_and_two_need_the_same_flops():
    config = pc2("runlocal")
    architecture = DecoderConfig(**config.base.shape)
    params = abstract_params(architecture)
    sizes = {arm.name: size_of(arm, params, architecture) for arm in arms_of(config)}
    assert sizes["LoRA r16, all linear"].trainable > sizes["Houlsby 64"].trainable > sizes["Pfeiffer 64"].trainable
    assert sizes["merged LoRA"].held_bytes == sizes["base"].held_bytes


def test_a_base_of_random_weights_has_the_shape_that_is_asked_for():
    config = default_config()
    config.base.shape = {"vocab_size": 11, "width": 6, "layers": 1, "heads": 2, "kv_heads": 1, "head_size": 4, "ff": 10}
    base = base_of(config)
    assert base.params["blocks"]["mlp"]["up"]["kernel"].shape == (1, 6, 10) and base.config.layers == 1 and len(base.fingerprint) == 64


def test_cases_are_read_from_text():
    assert cases_of(pc2())[:2] == [Case("forward", 1, 1), Case("forward", 1, 32)] and cases_of(pc2())[-1] == Case("train", 4, 64)


def test_mistakes_are_named():
    config = pc2()
    config.only = ("base", "Houlsby 46")
    with pytest.raises(ValueError, match="did you mean 'Houlsby 64'"):
        arms_of(config)
    config.only = ("base", "Houlsby 64")
    assert [arm.name for arm in arms_of(config)] == ["base", "Houlsby 64"]
    with pytest.raises(ValueError, match="no variant 't64'; there are t128"):
        pc2("t64")
    config = default_config()
    config.forward = ("8*128",)
    with pytest.raises(ValueError, match="'8.128' is no shape"):
        cases_of(config)
    config.base.shape = {"widht": 128}
    with pytest.raises(ValueError, match="did you mean 'width'"):
        base_of(config)
    with pytest.raises(ValueError, match="no arm is the base"):
        arms_of(config)
