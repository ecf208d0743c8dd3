"""result.json holds what it was given, whole or not at all."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftjax.train.result import KEYS, read_result, write_result

EMPTY = dict.fromkeys(KEYS, {}) | {"evaluations": [], "predictions": [], "methods": []}
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


@given(values)
def test_plain_data_comes_back(tmp_path_factory, value):
    workdir = tmp_path_factory.mktemp("run")
    write_result(workdir, EMPTY | {"config": value})
    assert read_result(workdir)["config"] == value


def test_numbers_of_numpy_and_jax_and_paths_are_written_as_json_has_them(tmp_path):
    path = write_result(tmp_path / "new", EMPTY | {"config": {
        "a": np.float32(0.5), "b": jnp.int32(3), "c": (1, jnp.bfloat16(2)), "d": tmp_path, "e": np.bool_(True)}})
    assert read_result(tmp_path / "new")["config"] == {"a": 0.5, "b": 3, "c": [1, 2.0], "d": str(tmp_path), "e": True}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_numbers_that_are_not_finite_are_spelt_out_and_read_as_floats(tmp_path):
    write_result(tmp_path, EMPTY | {"timings": {"a": math.nan, "b": jnp.float32(-jnp.inf), "c": math.inf}})
    text = (tmp_path / "result.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["timings"]
    assert found == {"a": "NaN", "b": "-Infinity", "c": "Infinity"}
    assert math.isnan(float(found["a"])) and float(found["b"]) == -math.inf


def test_half_a_surrogate_pair_survives(tmp_path):
    write_result(tmp_path, EMPTY | {"predictions": [{"after": "a\ud800b"}]})
    assert read_result(tmp_path)["predictions"][0]["after"] == "a\ud800b"


@pytest.mark.parametrize("change, message", [
    ({"config": {"f": {"g": print}}}, "result.config.f.g is a builtin_function_or_method"),
    ({"config": {"x": np.ones(3)}}, "result.config.x is a ndarray"),
    ({"config": {1: 2}}, "result.config has the key 1"),
    ({"evaluations": [{"step": 0}, {"loss": 1.0}]}, "evaluation 1 has no step; it has loss"),
])
def test_what_json_cannot_hold_is_named_and_the_old_file_stays(tmp_path, change, message):
    write_result(tmp_path, EMPTY)
    with pytest.raises(ValueError, match=message):
        write_result(tmp_path, EMPTY | change)
    assert read_result(tmp_path) == EMPTY


def test_missing_keys_are_named_with_what_is_like_them(tmp_path):
    with pytest.raises(ValueError, match=r"lacks evaluations \(found 'evaluation'\), memory"):
        write_result(tmp_path, {key: value for key, value in EMPTY.items() if key not in ("evaluations", "memory")}
                     | {"evaluation": []})
    assert not (tmp_path / "result.json").exists()


