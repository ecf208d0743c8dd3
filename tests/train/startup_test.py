"""Precision by backend, and the compilation cache where the user wants it."""

import subprocess
import sys

import jax.numpy as jnp
import pytest
from tiny import TINY

from peftjax.train.config import default_config
from peftjax.train.startup import make_model, precision


def test_auto_is_float32_on_cpu():
    assert precision("auto") == jnp.float32 and precision("bfloat16") == jnp.bfloat16


def test_model_takes_its_options_from_the_config():
    options = default_config().model
    options.remat, options.unroll = "block", True
    model = make_model(TINY, options, (1, 1))
    assert (model.remat, model.unroll, model.segments, model.dtype) == ("block", True, (1, 1), jnp.float32)


@pytest.mark.parametrize(("given", "quiet"), [((), True), (("--verbosity=0",), False)])
def test_what_libraries_tell_is_left_out_unless_it_is_asked_for(given, quiet):
    program = ("from absl import app, logging\nfrom peftjax.train.startup import log_warnings_only\n"
               "def main(_):\n    log_warnings_only()\n    logging.info('told'), logging.warning('warned')\napp.run(main)")
    done = subprocess.run([sys.executable, "-c", program, *given], check=True, capture_output=True, text=True)
    assert "warned" in done.stderr and ("told" in done.stderr) != quiet


@pytest.mark.parametrize("chosen", [True, False], ids=["user's", "ours"])
def test_compiled_programs_are_kept(tmp_path, chosen):
    program = ("from peftjax.train.startup import use_compilation_cache; use_compilation_cache(); import jax; "
               "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0); jax.jit(lambda x: x @ x)(jax.numpy.ones((64, 64)))")
    folder = tmp_path / "chosen" if chosen else tmp_path / "home" / "compiled"
    environment = {"PATH": "/usr/bin:/bin", "PEFTJAX_CACHE": str(tmp_path / "home"), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder)} if chosen else {}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert any(folder.iterdir())
