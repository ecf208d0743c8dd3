"""Points: how they are listed, and what they do to a config."""

import json
import math

import pytest

from peftjax.peft import lora, pfeiffer
from peftjax.train.config import check, default_config, methods, plain
from peftjax.train.points import (
    as_data,
    chain,
    choice,
    fixed,
    label,
    log_uniform,
    points_of,
    product,
    ranges_of,
    sample,
    uniform,
    with_point,
    zipit,
)


def config():
    made = default_config()
    made.peft = methods(lora(rank=4))
    made.data.name, made.data.options = "ha_intents", {"languages": ("en",)}
    return made


def test_products_multiply_and_the_last_field_varies_fastest():
    assert product({"a": (1, 2), "b": "x y".split()}) == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    pairs = zipit({"a": (1, 2), "b": (3, 4)})
    assert product(pairs, seed=(0, 1)) == [pair | {"seed": seed} for pair in pairs for seed in (0, 1)]
    assert product() == [{}] and product({"a": ()}) == []


def test_zipit_goes_side_by_side_and_chain_one_after_the_other():
    assert zipit({"a": (1, 2)}, [{"b": 3}, {"b": 4, "c": 5}]) == [{"a": 1, "b": 3}, {"a": 2, "b": 4, "c": 5}]
    assert chain(fixed({"a": 1}), product({"b": (2, 3)})) == [{"a": 1}, {"b": 2}, {"b": 3}]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: zipit({"a": (1, 2), "b": (1,)}), "found a: 2, b: 1"),
    (lambda: product({"a": (1,)}, [{"a": 2}]), "two parts set a"),
    (lambda: product({"a": 1e-3}), r"a has 0.001; give a list of values, one value as \[0.001\]"),
    (lambda: product({"a": "adamw"}), "give a list of values"),
    (lambda: choice(), "nothing to choose from"),
    (lambda: log_uniform(0, 1), "the first must be above 0"),
    (lambda: uniform(2, 1), "the first must be below the second"),
])
def test_lists_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_samples_are_spread_as_asked_and_depend_on_seed_field_and_number_alone():
    ranges = {"rate": log_uniform(1e-4, 1e-2), "rank": choice(4, 8), "size": uniform(1, 3), "decay": uniform(0.0, 0.5)}
    points = sample(400, ranges, seed=1)
    below = sum(point["rate"] < 1e-3 for point in points)  # the middle of the logarithms
    assert 160 < below < 240 and all(1e-4 <= point["rate"] <= 1e-2 for point in points)
    for field, values in (("rank", (4, 8)), ("size", (1, 2, 3))):
        assert {point[field] for point in points} == set(values)
    assert 0.2 < sum(point["decay"] for point in points) / 400 < 0.3
    assert sample(3, ranges, seed=1) == points[:3] != sample(3, ranges, seed=2)
    assert [p["rate"] for p in sample(3, {"rate": ranges["rate"]}, seed=1)] == [p["rate"] for p in points[:3]]
    assert not math.isclose(points[0]["rate"], points[1]["rate"])


def test_a_point_sets_fields_of_a_copy():
    base = config()
    base.lock()  # as one from the command line is
    before = plain(base)
    made = with_point(base, {
        "optimizer.learning_rate": 1, "peft[0].rank": 8, "peft[0].alpha": 3.0, "train.seed": 2, "data.options.languages": ("de",),
        "data.options.more": 1, "eval.metrics": ["token_f1"],
    })
    assert plain(base) == before
    assert (made.optimizer.learning_rate, made.peft[0].rank, made.peft[0].alpha, made.train.seed) == (1.0, 8, 3.0, 2)
    assert made.data.options.languages == ("de",) and made.data.options.more == 1 and made.eval.metrics == ("token_f1",)
    assert made.peft[0].targets == "all-linear"


def test_whole_methods_are_set_before_their_fields_and_survive_as_data():
    point = {"peft[0].dropout": 0.1, "peft": [pfeiffer(size=8), lora(rank=2)], "peft[1].rank": 3}
    made = with_point(config(), point)
    assert [m.method for m in made.peft] == ["bottleneck", "lora"] and made.peft[0].dropout == 0.1 and made.peft[1].rank == 3
    stored = json.loads(json.dumps(as_data(point)))
    assert plain(with_point(config(), stored)) == plain(made)
    check(made)
    assert with_point(config(), {"peft[0]": pfeiffer(size=4)}).peft[0].size == 4


@pytest.mark.parametrize(("point", "message"), [
    ({"optimizer.learning_rat": 1.0}, r"config.optimizer.learning_rat is not a field \(did you mean 'learning_rate'\?\); fields are b1"),
    ({"optimiser.name": "sgd"}, r"config.optimiser is not a field \(did you mean 'optimizer'"),
    ({"peft[0].rnk": 1}, r"config.peft\[0\].rnk is not a field \(did you mean 'rank'"),
    ({"peft[2].rank": 1}, r"config.peft\[2\] is not there: config.peft has 1 entries"),
    ({"train[0].seed": 1}, r"config.train\[0\] is not there: config.train is no list"),
    ({"train.steps.more": 1}, "config.train.steps has no fields"),
    ({"train.steps": "many"}, "config.train.steps cannot be 'many': it is of type int"),
    ({"peft[0]rank": 1}, "is no dotted field"),
    ({"peft": [{"method": "lorra"}]}, "did you mean 'lora'"),
])
def test_what_a_config_does_not_have_is_refused_by_name(point, message):
    with pytest.raises(ValueError, match=message):
        with_point(config(), point)


def test_labels_are_short_and_told_apart():
    point = {"optimizer.learning_rate": 1e-3, "peft[0].rank": 8, "peft[1].rank": 4, "peft": [pfeiffer(size=8), {"method": "lora"}]}
    assert label(point) == "learning_rate=0.001 peft[0].rank=8 peft[1].rank=4 peft=bottleneck+lora"


def test_a_config_file_lists_its_points(tmp_path):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("def sweep():\n    return [{'train.seed': 1}]\n")
    bad.write_text("def get_config():\n    return None\n")
    assert points_of(f"{good}:runlocal") == [{"train.seed": 1}]
    with pytest.raises(ValueError, match=r"bad.py has no sweep\(\)"):
        points_of(bad)
    bad.write_text("def sweep():\n    return {'train.seed': (1, 2)}\n")
    with pytest.raises(ValueError, match="it must give a list of dicts"):
        points_of(bad)


def test_a_config_file_says_its_ranges(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("from peftjax.train.points import choice\ndef search():\n    return {'train.seed': choice(1, 2)}\n")
    assert ranges_of(f"{path}:runlocal") == {"train.seed": choice(1, 2)}
    path.write_text("def search():\n    return {'train.seed': (1, 2)}\n")
    with pytest.raises(ValueError, match="it must give a dict"):
        ranges_of(path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"has no search\(\)"):
        ranges_of(path)
