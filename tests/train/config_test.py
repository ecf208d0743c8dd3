"""The config: defaults, refusals, and what a command line may say."""

import pytest
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from peftjax.peft import bottleneck, lora
from peftjax.peft.spec import from_data
from peftjax.train.config import check, config_hash, default_config, differences, flat_config, flatten_data, methods, plain


def good():
    config = default_config()
    config.peft = methods(lora(rank=4, rank_pattern={"down.proj": 8}), bottleneck(size=3, layers=range(2)))
    config.data.name = "ha_intents"
    return config


def test_methods_survive_as_data():
    assert [from_data(method) for method in plain(good())["peft"]] == [
        lora(rank=4, rank_pattern={"down.proj": 8}), bottleneck(size=3, layers=(0, 1)),
    ]


@pytest.mark.parametrize(("field", "value", "message"), [
    ("train.steps", 0, "config.train.steps is 0; it must be at least 1"),
    ("train.accumulate", 3, "no multiple of train.accumulate 3"),
    ("optimizer.schedule", "cosin", "did you mean 'cosine'"),
    ("data.name", "", "config.data.name is empty"),
    ("train.parallel", "pjit", "it may be jit, pmap"),
    ("data.layout", "bucket", "did you mean 'buckets'"),
    ("data.share_prefixes", "yes", "it may be auto, on, off"),
    ("base.dtype", "float16", "it may be auto, float32, bfloat16"),
    ("base.quantise", "nf5", "did you mean 'nf4'"),
    ("base.quantise", ConfigDict({"embed": "int8", "all-linear": "nf4"}), "write text or pairs: 'all-linear=nf4,embed=int8'"),
    ("peft[0].rank", 0, "rank 0 is not positive"),
    ("peft[0].init", "kaimin", "is none of kaiming"),
    ("peft[0].method", "lorra", "did you mean 'lora'"),
    ("compose", {"stak": ["default"]}, "did you mean 'stack'"),
    ("compose", '{"stack": ["defalt"]}', "names 'defalt' (did you mean 'default'"),
    ("compose", {"batch_split": ["default"]}, 'by which field of the records: {"batch_split": [\'default\'], "at": "lang"}'),
    ("compose", {"batch_split": ["default"], "sizes": [4]}, "batch_split with sizes, and a run does not know whose its rows are"),
    ("compose", {"split": ["default"], "at": "lang"}, "split, and a run does not know whose its rows are"),
])
def test_wrong_values_are_refused_by_name(field, value, message):
    config = good()
    config_path.set_value(field, config, value)
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("[", r"\[")):
        check(config)


def test_unknown_fields_are_refused_with_the_nearest():
    config = good()
    config.train.stps = 3
    config.peft[0].rnk = 3
    with pytest.raises(ValueError, match=r"config.train.stps is not a field \(did you mean 'steps'"):
        check(config)
    del config.train.stps
    with pytest.raises(ValueError, match=r"lora has no field 'rnk' \(did you mean 'rank'"):
        check(config)


def test_no_methods_is_refused():
    config = good()
    config.peft = []
    with pytest.raises(ValueError, match="nothing would be trained"):
        check(config)


def test_default_values_pass():
    config = good()
    before = plain(config)
    check(config)
    assert plain(config) == before


@pytest.mark.parametrize(("field", "value"), [
    ("peft[0].alpha", 16.0), ("peft[0].layers", (0, 1)), ("peft[1].size", 7), ("data.response", "{response}"),
])
def test_empty_fields_can_be_set_from_the_command_line(field, value):
    config = good()
    config_path.set_value(field, config, value)
    check(config)
    assert config_path.get_value(field, config) == value
    assert config_path.get_type(field, config) in (object, str, int)


def test_methods_may_stand_in_a_config_as_they_are():
    config = good()
    config.peft = [lora(rank=3)]
    check(config)
    assert from_data(plain(config)["peft"][0]) == lora(rank=3)


def test_a_wrong_metric_is_refused_before_anything_runs():
    config = good()
    config.eval.metrics = ("exact_mach",)
    with pytest.raises(ValueError, match="did you mean 'exact_match'"):
        check(config)


def test_hash_and_differences_see_every_field():
    first, second = good(), good()
    assert config_hash(first) == config_hash(second) and not differences(flat_config(first), flat_config(second))
    second.optimizer.clip = 0.5
    assert config_hash(first) != config_hash(second)
    assert differences(flat_config(first), flat_config(second)) == ["optimizer.clip: 1.0 | 0.5"]


def test_flatten_data_keeps_lists_whole():
    assert flatten_data({"a": {"b": [1, {"c": 2}]}, "d": None}) == {"a.b": [1, {"c": 2}], "d": None}
