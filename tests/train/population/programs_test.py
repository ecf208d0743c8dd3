"""Which configs share a program."""

import pytest
from ml_collections import ConfigDict

from peftjax.peft import lora, pfeiffer
from peftjax.train.config import default_config, methods
from peftjax.train.population import programs, run_population


def config(**fields) -> ConfigDict:
    made = default_config()
    made.data.name, made.peft = "general", methods(lora())
    made.update_from_flattened_dict(fields)
    return made


def test_members_may_differ_in_methods_numbers_seeds_and_data():
    other = config()
    other.peft = methods(pfeiffer())
    same = [config(), config(**{"optimizer.learning_rate": 0.1, "train.seed": 3}), other, config(**{"data.name": "shell"})]
    assert programs(same) == [[0, 1, 2, 3]]
    assert programs(same, most=3) == [[0, 1, 2], [3]]


def test_what_shapes_a_program_keeps_configs_apart():
    upper = config()
    upper.peft = methods(lora(layers=(1,)))
    apart = [config(), config(**{"train.steps": 7}), config(**{"base.dtype": "bfloat16"}), upper]
    assert programs([*apart, config()]) == [[0, 4], [1], [2], [3]]
    with pytest.raises(ValueError, match=r"cannot share a program.*train.steps: 100 \| 7"):
        run_population(apart[:2], ["a", "b"])


def test_what_can_share_no_program_is_alone():
    buckets = [config(**{"data.layout": "buckets"}) for _ in range(2)]
    assert programs(buckets) == [[0], [1]]
    with pytest.raises(ValueError, match="several shapes"):
        run_population(buckets, ["a", "b"])
