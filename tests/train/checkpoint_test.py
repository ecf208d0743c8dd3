"""Checkpoints: what was saved comes back bit for bit or not at all, whatever killed, cut or replaced it."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.train.checkpoint import Checkpoints, stored_specification, stored_target

SPECIFICATION = {"methods": [{"name": "lora", "rank": 2}], "base": "abc", "tokenizer": "def", "versions": {"jax": "1"}}
ROOT = Path(__file__).resolve().parents[2]


def _arrays(step):
    """A state that is a function of its step, with the names and dtypes that are easy to get wrong."""
    key = jax.random.key(step)
    return {
        "trainable/blocks/attn/q/a": jax.random.normal(key, (3, 2, 40)),
        "trainable/blocks": jnp.full((2,), step, jnp.bfloat16),
        "trainable.blocks/naïve name": jnp.arange(4, dtype=jnp.uint8),
        "optimiser/0/mu": jnp.zeros((0, 7)),
        "step": jnp.int32(step),
        "key": jax.random.key_data(key),
    }


def _target(arrays=None):
    return {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in (arrays or _arrays(0)).items()}


def _assert_state(found, step):
    assert found[0] == step and list(found[1]) == list(_arrays(step))
    for path, array in _arrays(step).items():
        assert found[1][path].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(found[1][path]), np.asarray(array), err_msg=path)


def _run(code, *arguments, **environment):
    """Run Python code in a process of its own; its stdout."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """A folder with checkpoints of steps 1 and 2."""
    with Checkpoints(tmp_path / "checkpoints", SPECIFICATION) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _arrays(step))
    return tmp_path / "checkpoints"


def test_nothing_saved_is_none(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", SPECIFICATION) as checkpoints:
        assert checkpoints.restore(_target()) is None
        assert checkpoints.all_steps() == [] and checkpoints.latest_step() is None and checkpoints.best_step() is None
    assert not (tmp_path / "checkpoints").exists()


def test_what_was_saved_comes_back_bit_for_bit(folder):
    with Checkpoints(folder, SPECIFICATION | {"versions": {"jax": "2"}}) as checkpoints:
        _assert_state(checkpoints.restore(_target()), 2)
        _assert_state(checkpoints.restore(_target(), step=1), 1)
        _assert_state(checkpoints.restore(_arrays(0)), 2)  # arrays as targets: their sharding is used
        with pytest.raises(ValueError, match=r"no checkpoint of step 7 in .*; there are \[1, 2\]"):
            checkpoints.restore(_target(), step=7)


def test_a_checkpoint_says_by_itself_what_it_fits(folder):
    assert stored_specification(folder) == stored_specification(folder, 1) == SPECIFICATION
    with Checkpoints(folder, stored_specification(folder)) as checkpoints:
        _assert_state(checkpoints.restore(stored_target(folder)), 2)
    for function in (stored_specification, stored_target):
        with pytest.raises(ValueError, match=r"no checkpoint of step 3 in .*; there are \[1, 2\]"):
            function(folder, 3)
        with pytest.raises(ValueError, match="no checkpoint in .*nowhere"):
            function(folder / "nowhere")


def test_saving_a_step_again_replaces_it(folder):
    with Checkpoints(folder, SPECIFICATION) as checkpoints:
        changed = _arrays(2) | {"trainable/blocks": jnp.full((2,), 9, jnp.bfloat16)}
        checkpoints.save(2, changed)
        assert checkpoints.all_steps() == [1, 2]
        assert checkpoints.restore(_target())[1]["trainable/blocks"][0] == 9


@pytest.mark.parametrize("best, expected_best, expected_steps", [
    (None, None, [4, 8, 9, 10]), ("min", 3, [3, 4, 8, 9, 10]), ("max", 2, [2, 4, 8, 9, 10])])
def test_the_newest_the_best_and_every_fourth_are_kept(tmp_path, best, expected_best, expected_steps):
    scores = {1: 0.5, 2: 0.9, 3: 0.1, 4: float("nan"), 5: None, 6: 0.1, 7: 0.9, 8: float("-inf"), 9: 0.3, 10: 0.4}
    with Checkpoints(tmp_path, SPECIFICATION, keep_newest=2, keep_every=4, best=best) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, {"step": jnp.int32(step)}, score)
        assert checkpoints.best_step() == expected_best
        assert checkpoints.all_steps() == expected_steps
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{step:08d}" for step in expected_steps]


def test_another_specification_is_refused_with_the_differences(folder):
    ours = SPECIFICATION | {"base": "xyz", "methods": [{"name": "lora", "rank": 4}]}
    with Checkpoints(folder, ours) as checkpoints:
        with pytest.raises(ValueError, match='(?s)00000002 was made for something else; 2 differences.*'
                                             'base: ours "xyz", theirs "abc".*methods.0.rank: ours 4, theirs 2'):
            checkpoints.restore(_target())


def test_other_arrays_are_refused_with_the_whole_list(folder):
    asked = _target() | {"trainable/blocks/attn/q/a": jax.ShapeDtypeStruct((3, 4, 40), jnp.float32)}
    asked["trainable/blocks/attn/q/b"] = asked.pop("key")
    with Checkpoints(folder, SPECIFICATION) as checkpoints:
        with pytest.raises(ValueError) as error:
            checkpoints.restore(asked)
    assert str(error.value).splitlines()[0].endswith("holds other arrays than asked for; 3 differences:")
    assert str(error.value).splitlines()[1:] == [
        "  missing: trainable/blocks/attn/q/b (did you mean trainable/blocks/attn/q/a?)",
        "  extra: key: uint32[2]",
        "  misshapen: trainable/blocks/attn/q/a: asked for float32[3,4,40], the checkpoint holds float32[3,2,40]",
    ]


def _damage(folder, how):
    """Damage one checkpoint's folder in one way."""
    largest = max(folder.glob("arrays/ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)
    if how == "truncated":
        os.truncate(largest, largest.stat().st_size // 2)
    elif how == "missing":
        largest.unlink()
    elif how == "flipped":
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    elif how == "no document":
        (folder / "checkpoint.json").unlink()
    elif how == "half a document":
        os.truncate(folder / "checkpoint.json", 300)
    elif how == "other hash":
        text = re.sub(r'(?<=float32", "sha256": ")[0-9a-f]{64}', "0" * 64, (folder / "checkpoint.json").read_text())
        (folder / "checkpoint.json").write_text(text)


@pytest.mark.parametrize(
    "how", ["truncated", "missing", "flipped", "no document", "half a document", "other hash"])
def test_a_damaged_newest_is_passed_over_aloud_and_never_counts_again(folder, how, capfd):
    _damage(folder / "00000002", how)
    with Checkpoints(folder, SPECIFICATION, keep_newest=1) as checkpoints:
        _assert_state(checkpoints.restore(_target()), 1)
        warning = capfd.readouterr().err
        assert "warning: checkpoint" in warning and "00000002 is damaged" in warning and len(warning.splitlines()) == 1
        assert checkpoints.all_steps() == [1]
        checkpoints.save(2, _arrays(2))
        assert checkpoints.all_steps() == [2] and (folder / "damaged-00000002").is_dir()
        _assert_state(checkpoints.restore(_target()), 2)


def test_a_damaged_one_that_was_asked_for_is_an_error_and_so_is_nothing_usable(folder):
    _damage(folder / "00000002", "truncated")
    with Checkpoints(folder, SPECIFICATION) as checkpoints:
        with pytest.raises(ValueError, match="no usable checkpoint.*\n.*00000002 is damaged"):
            checkpoints.restore(_target(), step=2)
        _damage(folder / "00000001", "missing")
        with pytest.raises(ValueError, match="(?s)no usable.*00000002 is damaged.*00000001 is damaged.*from step 0"):
            checkpoints.restore(_target())


def test_a_copied_folder_restores(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(folder)
    with Checkpoints(tmp_path / "elsewhere", SPECIFICATION) as checkpoints:
        _assert_state(checkpoints.restore(_target()), 2)


def test_a_disk_that_takes_no_more_is_a_clear_error_and_leaves_the_previous_checkpoint(folder):
    # a limit on the size of files makes every write past it fail, as a full disk does
    out = _run("""
        import resource, sys
        import numpy as np
        from peftjax.train.checkpoint import Checkpoints
        import json
        checkpoints = Checkpoints(sys.argv[1], json.loads(sys.argv[2]))
        for limit in (2_000_000, 100, 0):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            try:
                checkpoints.save(3, {"x": np.random.default_rng(0).random((2000, 1000), np.float32)})
                print("saved")
            except OSError as error:
                print(error)
        print(checkpoints.all_steps())
        """, folder, json.dumps(SPECIFICATION))
    lines = out.splitlines()
    assert len(lines) == 4 and lines[-1] == "[1, 2]"
    for line in lines[:3]:
        assert line.startswith(f"checkpoint of step 3 could not be written to {folder}: 8,000,000 bytes needed, "), line
    assert sorted(path.name for path in folder.iterdir()) == ["00000001", "00000002"]
    with Checkpoints(folder, SPECIFICATION) as checkpoints:
        _assert_state(checkpoints.restore(_target()), 2)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with Checkpoints(tmp_path / "file" / "checkpoints", SPECIFICATION) as checkpoints:
        with pytest.raises(OSError, match=f"written to {tmp_path}/file/checkpoints: 4 bytes needed") as error:
            checkpoints.save(1, {"step": jnp.int32(1)})
    assert error.value.__cause__.errno == errno.ENOTDIR


def test_a_state_resumes_on_other_shardings(tmp_path):
    out = _run("""
        import sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from peftjax.train.checkpoint import Checkpoints
        mesh = jax.make_mesh((4, 2), ("data", "model"))
        kinds = {name: NamedSharding(mesh, spec)
                 for name, spec in [("rows", P("data")), ("both", P("model", "data")), ("all", P())]}
        full = np.arange(64.0, dtype=np.float32).reshape(8, 8)
        checkpoints = Checkpoints(sys.argv[1], {})
        checkpoints.save(1, {name: jax.device_put(full, sharding) for name, sharding in kinds.items()})
        others = dict(zip(kinds, [kinds["both"], kinds["all"], None]))
        target = {name: jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)
                  for name, sharding in others.items()}
        step, arrays = checkpoints.restore(target)
        for name, array in arrays.items():
            assert np.array_equal(array, full)
            assert others[name] is None or array.sharding == others[name]
            print(name, len(array.devices()))
        """, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert out.split() == ["rows", "8", "both", "8", "all", "1"]
    with Checkpoints(tmp_path, {}) as checkpoints:  # and here, on the devices of this process
        target = dict.fromkeys(["rows", "both", "all"], jax.ShapeDtypeStruct((8, 8), jnp.float32))
        step, arrays = checkpoints.restore(target)
    assert all(np.array_equal(array, np.arange(64.0).reshape(8, 8)) for array in arrays.values())


@pytest.mark.slow  # starts several processes: ten seconds
def test_killed_at_any_moment_only_complete_checkpoints_are_seen(tmp_path):
    # The driver forks before JAX starts its threads: each child is a process of its own without the seconds of
    # imports. Half of them kill themselves at their n-th file operation, the others are killed after a random while.
    out = _run("""
        import os, random, signal, sys
        import numpy as np
        import jax, orbax.checkpoint
        from peftjax.train.checkpoint import Checkpoints

        def state(step):
            return {f"trainable/{i}": np.full((100, 1000 + i), step, np.float32) for i in range(8)}

        target = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in state(0).items()}

        def resumed():
            checkpoints = Checkpoints(sys.argv[1], {"base": "abc"}, keep_newest=2, best="max")
            found = checkpoints.restore(target)
            if found is None:
                return checkpoints, 0
            assert all(np.array_equal(array, state(found[0])[path]) for path, array in found[1].items())
            return checkpoints, found[0]

        def save_until_killed(at_operation):
            checkpoints, step = resumed()
            seen = 0
            def count(event, arguments):
                nonlocal seen
                if event in ("open", "os.mkdir", "os.rename", "os.remove") and sys.argv[1] in str(arguments[0]):
                    seen += 1
                    if seen == at_operation:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(count)
            for later in range(step + 1, step + 40):
                checkpoints.save(later, state(later), score=-abs(later - 3))

        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        generator, latest = random.Random(0), []
        for attempt in range(12):
            at_operation = generator.randrange(1, 260) if attempt % 2 else 0
            child = os.fork()
            if child == 0:
                try:
                    save_until_killed(at_operation)
                finally:
                    os._exit(1)
            signal.sigtimedwait([signal.SIGCHLD], 5 if at_operation else generator.uniform(0.1, 0.9))
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the child ended by itself"
            signal.sigtimedwait([signal.SIGCHLD], 0)  # taken out, or the next wait would end at once
            latest.append(Checkpoints(sys.argv[1], {}).latest_step() or 0)
            print("killed at step", latest[-1], flush=True)
        checkpoints, step = resumed()
        assert latest == sorted(latest) and step == latest[-1] > 5 and checkpoints.best_step() == 3, latest
        checkpoints.save(step + 1, state(step + 1))
        print(step, sorted(os.listdir(sys.argv[1])))
        """, tmp_path)
    assert out.count("killed") == 12
    assert not re.search(r"saving|deleting|damaged", out), out
