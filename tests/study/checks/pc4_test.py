"""PC4 on a tiny base: gradients of B follow rsLoRA's law; other exponents are told."""

import json

import numpy as np
import pytest
import tiny_checkpoint
from study.checks.rows import words

from peftjax.study.checks import pc4
from peftjax.study.checks.conduct import conduct
from peftjax.study.checks.finding import FAILS, HOLDS

RANKS = (1, 4, 16)


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """(config of a small check, its folder after it was done)."""
    folder = tmp_path_factory.mktemp("pc4")
    tiny_checkpoint.write(folder / "base")
    config = pc4.default_config()
    config.base, config.ranks, config.seeds, config.rows, config.length = str(folder / "base"), (2, 8), (0, 1), 4, 12
    conduct(config, folder / "check", lambda text: None)
    return config, folder / "check"


def planted(gradient, added, seeds=3):
    """Pieces in which both follow a power of the rank."""
    def of(name, rank):
        return {"gradient": [rank ** gradient[name]] * seeds,
                "added": [(1 + seed) * rank ** added[name] for seed in range(seeds)]}
    return {f"rank {rank}": {"rank": rank, "base": "b", "scales": {name: of(name, rank) for name in pc4.SCALES}} for rank in RANKS}


LAW = {"alpha/r": -0.5, "alpha/sqrt(r)": 0.0, "constant": 0.5}
ADDED = {"alpha/r": -0.2, "alpha/sqrt(r)": 0.3, "constant": 0.8}


def test_the_law_is_recognised():
    finding = pc4.judge(planted(LAW, ADDED))
    assert words(finding) == [HOLDS] * 5 and "-0.500" in finding.claims[0].measured and "+0.300" in finding.claims[3].measured


@pytest.mark.parametrize("claim,gradient,added", [
    (0, {"alpha/r": -0.3}, {}), (2, {"alpha/sqrt(r)": 0.2}, {}), (1, {}, {"alpha/r": 0.1}), (4, {}, {"constant": 1.2}),
])
def test_another_exponent_is_told(claim, gradient, added):
    found = words(pc4.judge(planted(LAW | gradient, ADDED | added)))
    assert found[claim] == FAILS and found.count(FAILS) == 1


def test_gradients_at_init_follow_the_scale(check):
    _, folder = check
    measured = json.loads((folder / "result.json").read_text())["measured"]
    two, eight = (measured[f"rank {rank}"]["scales"] for rank in (2, 8))
    for seed in range(2):  # at one rank the scale is a factor of the gradient of B
        for rank, scales in ((2, two), (8, eight)):
            at = {name: scales[name]["gradient"][seed] for name in pc4.SCALES}
            np.testing.assert_allclose(at["alpha/r"] / at["constant"], 16 / rank, rtol=1e-4)
            np.testing.assert_allclose(at["alpha/sqrt(r)"] / at["constant"], 4 / rank**0.5, rtol=1e-4)
    exponent, _ = pc4.slope((2, 8), [two["alpha/r"]["gradient"], eight["alpha/r"]["gradient"]])
    assert -0.75 < exponent < -0.25


def test_a_check_leaves_its_report_and_is_not_measured_again(check, monkeypatch):
    config, folder = check
    assert {"result.json", "report.md", "plot.png", "config.json", "measured"} <= {path.name for path in folder.iterdir()}
    assert "| claim | predicted | measured | verdict |" in (folder / "report.md").read_text()
    monkeypatch.delattr("peftjax.study.checks.pc4.attach")  # measuring would need it
    assert conduct(config, folder, lambda text: None) == folder / "report.md"
    other = config.copy_and_resolve_references()
    other.rows = 5
    with pytest.raises(ValueError, match="holds a check of another config; rows differ"):
        conduct(other, folder)
    other.check = "pc44"
    with pytest.raises(ValueError, match="no check is called 'pc44' .did you mean 'pc4'"):
        conduct(other, folder / "other")
