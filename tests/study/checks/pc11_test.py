"""PC11 on a tiny base: both starts are nearer to the weight than its quantised form; what is not nearer is told."""

import pytest
import tiny_checkpoint
from study.checks.rows import words

from peftjax.study.checks import pc11
from peftjax.study.checks.finding import FAILS, HOLDS


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_checkpoint.write(folder)
    config = pc11.default_config()
    config.bases, config.rank, config.targets, config.schemes = {"tiny": str(folder)}, 4, ("q_proj",), ("int4 affine, block 32",)
    return {name: measure() for name, measure in pc11.pieces(config, folder, print).items()}


def test_both_starts_reduce_the_error(measured):
    piece = measured["tiny/int4 affine, block 32"]
    assert piece["bits"] == 5.0 and piece["kernels"] == 1  # 4 bits, and 32 of constants for 32 weights
    assert 0 < piece["QPiSSA"] < piece["quantised"] and 0 < piece["LoftQ"] < 0.9 * piece["quantised"]
    assert words(pc11.judge(measured)) == [HOLDS, HOLDS]


def test_what_is_off_is_told(measured):
    piece = measured["tiny/int4 affine, block 32"]
    worse = piece | {"LoftQ": 1.1 * piece["quantised"]}
    assert words(pc11.judge({"a": piece, "b": worse})) == [FAILS, HOLDS]
    assert [words(pc11.judge({"x/NF4": piece | {"bits": bits}}))[0] for bits in (4.2, 4.13)] == [FAILS, HOLDS]
    lossless = piece | {"quantised": 1e-7, "LoftQ": 1e-6}  # on its own grid there is nothing to make up for
    assert words(pc11.judge({"a": piece, "own": lossless})) == [HOLDS, HOLDS] and "own" in pc11.judge({"a": piece, "own": lossless}).setting
