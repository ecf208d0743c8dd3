"""The configs of the paper checks: each builds, names its check, and says how it is run and what was predicted."""

import runpy
from pathlib import Path

import pytest

from peftjax.study.checks.conduct import CHECKS, check_of
from peftjax.study.checks.trials import Trial, config_of
from peftjax.train.config import check

CONFIGS = Path(__file__).parents[3] / "configs" / "studies"


@pytest.mark.parametrize("name", CHECKS)
def test_a_config_is_complete_and_documented(name):
    module = runpy.run_path(str(CONFIGS / f"{name}.py"))
    config, short = module["get_config"](), module["get_config"]("runlocal")
    assert config.check == short.check == name and check_of(config) is CHECKS[name]
    assert f"--config configs/studies/{name}.py" in module["__doc__"] and "Predicted" in module["__doc__"]
    with pytest.raises(ValueError, match="no variant 'runlocl'"):
        module["get_config"]("runlocl")
    for arm in config.get("arms", {}):
        run = config_of(config, Trial(arm, 1e-3, 7))
        check(run)
        assert run.optimizer.learning_rate == 1e-3 and run.train.seed == 7 and run.eval.at_end == ("validation", "test")


def test_an_arm_has_fields_of_its_own():
    config = runpy.run_path(str(CONFIGS / "pc9.py"))["get_config"]()
    assert config_of(config, Trial("LoRA+", 1e-3, 0)).optimizer.lora_plus_ratio == 16.0
    assert config_of(config, Trial("LoRA", 1e-3, 0)).optimizer.lora_plus_ratio == 1.0
    assert config_of(config, Trial("DoRA", 1e-3, 0)).peft[0].dora and not config.arms["LoRA"].peft[0].dora
