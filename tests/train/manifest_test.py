"""What is stored against what is asked for: nothing that differs goes unnamed."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.train import manifest

ARRAYS = {"trainable/q/a": jnp.ones((2, 3)), "trainable/q/b": jnp.zeros((2, 3), jnp.bfloat16), "step": jnp.int32(3),
          "empty": jnp.zeros((0, 4)), "small": jnp.ones(5, jnp.int4)}


def _target(arrays):
    return {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in arrays.items()}


def test_the_same_arrays_have_no_differences():
    stored = manifest.manifest(ARRAYS)
    assert manifest.target_differences(stored, _target(ARRAYS)) == []
    assert manifest.content_differences(stored, ARRAYS) == []


def test_every_missing_extra_and_misshapen_array_is_named():
    asked = _target(ARRAYS) | {"trainable/q/b": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    asked["stop"] = jax.ShapeDtypeStruct((), jnp.int32)
    asked["trainable/q/a"] = jax.ShapeDtypeStruct((3, 2), jnp.float32)
    del asked["step"]
    assert manifest.target_differences(manifest.manifest(ARRAYS), asked) == [
        "missing: stop (did you mean step?)",
        "extra: step: int32[]",
        "misshapen: trainable/q/a: asked for float32[3,2], the checkpoint holds float32[2,3]",
        "misshapen: trainable/q/b: asked for float32[2,3], the checkpoint holds bfloat16[2,3]",
    ]


@pytest.mark.parametrize("path", [path for path, array in ARRAYS.items() if array.size])
def test_one_changed_number_changes_the_digest(path):
    flat = np.array(ARRAYS[path]).reshape(-1)
    flat[-1] = 2
    changed = ARRAYS | {path: jnp.asarray(flat).reshape(ARRAYS[path].shape)}
    lines = manifest.content_differences(manifest.manifest(ARRAYS), changed)
    assert len(lines) == 1 and lines[0].startswith(f"{path}: sha256 ")


def test_the_digest_does_not_depend_on_memory_layout():
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    assert manifest.digest(np.asfortranarray(array)) == manifest.digest(array) == manifest.digest(jnp.asarray(array))


def test_what_would_not_come_back_is_refused():
    with pytest.raises(ValueError, match="key is a typed PRNG key"):
        manifest.manifest({"key": jax.random.key(0)})
    with pytest.raises(ValueError, match="x is float64, which would come back as float32"):
        manifest.manifest({"x": np.zeros(2)})


def test_specifications_differ_by_dotted_path_and_not_in_versions():
    ours = {"methods": [{"name": "lora", "rank": 8}], "base": "a", "versions": {"jax": "1"}, "info": 1, "tags": {}}
    theirs = {"methods": [{"name": "lora", "rank": 16, "alpha": 2}], "base": "a", "versions": {"jax": "2"}, "tags": []}
    assert manifest.specification_differences(ours, theirs) == [
        "methods.0.alpha: ours absent, theirs 2", "methods.0.rank: ours 8, theirs 16", "tags: ours {}, theirs []"]
    assert manifest.specification_differences(ours, ours) == []


def test_files_missing_cut_short_and_changed_are_named(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("kept", "cut", "changed", "deep/gone"):
        (tmp_path / name).write_bytes(b"0123456789")
    stored = manifest.file_list(tmp_path)
    assert manifest.file_differences(tmp_path, stored) == []
    os.truncate(tmp_path / "cut", 4)
    (tmp_path / "changed").write_bytes(b"012345678X")
    (tmp_path / "deep/gone").unlink()
    assert manifest.file_differences(tmp_path, stored) == [
        "changed: other bytes than were saved", "cut: 4 bytes, saved with 10", "deep/gone: missing"]
