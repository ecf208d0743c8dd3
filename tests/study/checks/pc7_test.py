"""PC7's arithmetic: correlation over runs, matched losses, the scaled LoRA, and what a shift is of the untouched base."""

import jax
import numpy as np
import pytest
from study.checks.rows import words
from tiny_run import tiny_config

from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import Decoder, init_params
from peftjax.peft import attach, full, lora
from peftjax.study.checks import pc7
from peftjax.study.checks.finding import FAILS, HOLDS, OPEN, REPORTED
from peftjax.study.checks.shift import Shift, log_probabilities, sums
from peftjax.study.checks.trials import arm, trials_config
from peftjax.train.adapters import of_run
from peftjax.train.bench import dense_batch

SEEDS = (0, 1, 2)
TINY = DecoderConfig(vocab_size=32, width=16, layers=2, heads=2, kv_heads=2, head_size=8, ff=32, tied=True)


def measured(forgetting, kl=lambda f: f, zero=0.0):
    """Two arms at two rates; each point's forgetting is a factor of what was learnt, and its KL a function of it."""
    points = [
        {"arm": arm, "rate": rate, "seed": seed, "step": step, "target": 5 - learnt - 0.01 * seed, "forgetting": factor * learnt,
         "kl": kl(factor * learnt)}
        for arm, factor in forgetting.items() for rate, speed in ((0.1, 1.0), (0.3, 1.5)) for seed in SEEDS
        for step, learnt in ((10, 0.4 * speed), (20, 0.8 * speed))
    ]
    ends = [one for one in points if one["arm"] == pc7.LORA and one["rate"] == 0.3 and one["step"] == 20]
    scaled = [{"seed": one["seed"], "scale": 1.0} | {name: one[name] for name in ("target", "forgetting", "kl")} for one in ends]
    scaled += [{"seed": seed, "scale": 0.0, "target": 5.0, "forgetting": zero, "kl": 0.0} for seed in SEEDS]
    rows = [{"arm": arm, "error": None, "parameters": 7} for arm in forgetting]
    return {"tune": {"rows": rows, "at": dict.fromkeys(forgetting, 0.3), "edge": []}, "scaled": {"points": scaled},
            "points": {"points": points, "base": {"test": 5.0, "general": 4.0}}}


def test_who_forgets_less_is_told():
    assert words(pc7.judge(measured({"full": 1.0, pc7.LORA: 0.5}))) == [HOLDS, HOLDS, REPORTED, HOLDS]
    assert words(pc7.judge(measured({"full": 0.5, pc7.LORA: 1.0})))[0] == FAILS
    assert words(pc7.judge(measured({"full": 1.0, pc7.LORA: 1.0})))[0] == OPEN
    assert words(pc7.judge(measured({"full": 1.0, pc7.LORA: 0.5}, kl=lambda f: -f)))[1] == FAILS
    assert words(pc7.judge(measured({"full": 1.0, pc7.LORA: 0.5}, zero=1e-3)))[-1] == FAILS


def test_forgetting_at_a_loss_is_the_least_of_the_points_that_reach_it():
    points = [{"target": 3.0, "forgetting": 0.5}, {"target": 2.9, "forgetting": 0.2}, {"target": 2.0, "forgetting": 1.0}]
    assert [pc7.least_forgetting(points, loss) for loss in (3.5, 2.5, 1.0)] == [0.2, 1.0, np.inf]
    found = measured({"full": 1.0, pc7.LORA: 0.5})["points"]["points"]
    assert pc7.reached(found, ("full", pc7.LORA), 0) == pytest.approx(5 - 1.2)


def test_the_bootstrap_draws_runs_and_not_checkpoints():
    noise = np.random.default_rng(0)
    one = [{"arm": "a", "rate": 0.1, "seed": seed, "kl": kl, "forgetting": kl + noise.normal()} for seed, kl in enumerate(range(12))]
    value, low, high = pc7.correlation(one)
    assert low < value < high
    twice = pc7.correlation([*one, *one])  # each run's checkpoint stored twice tells nothing new
    assert twice[0] == pytest.approx(value, abs=0.02) and twice[2] - twice[1] == pytest.approx(high - low, rel=0.15)


def test_a_lora_scaled_by_nothing_is_the_base_and_by_one_itself():
    params = attach(init_params(TINY, jax.random.key(0)), [lora(rank=2)], jax.random.key(1))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    model, batch = Decoder(TINY), dense_batch(32, 2, 8, 0)
    one, two = (log_probabilities(model, pc7.scaled(params, by), batch) for by in (1.0, 2.0))
    np.testing.assert_array_equal(one, log_probabilities(model, params, batch))
    assert float(abs(one - two).max()) > 1e-3
    other = jax.tree.map(lambda leaf: 1.5 * leaf, params)  # zero times whatever A and B hold
    zero = pc7.scaled(params, 0.0)
    assert jax.tree.structure(zero) == jax.tree.structure(other)
    tokens, nll, kl = sums(one, two, batch)
    p, q = np.asarray(two, np.float64), np.asarray(one, np.float64)
    assert tokens == batch.targets.size and float(kl) == pytest.approx(float((np.exp(p) * (p - q)).sum()), rel=1e-4) and kl > 0
    assert float(sums(two, two, batch)[2]) == 0.0 and nll > 0


@pytest.mark.slow  # trains a dozen tiny runs
def test_checkpoints_of_real_runs_are_measured_against_their_base(tmp_path):
    config, tiny = trials_config("pc7"), tiny_config(tmp_path)
    config.run.base.uri, config.run.data.name, config.run.data.length = tiny.base.uri, tiny.data.name, tiny.data.length
    config.run.train.steps, config.run.checkpoint.every, config.run.checkpoint.keep_newest = 12, 6, 10
    config.run.eval.general.name, config.run.eval.general.rows = tiny.eval.general.name, 4
    config.arms = {"full": arm(full()), pc7.LORA: arm(lora(rank=2))}
    config.rates, config.rounds, config.tuning_seeds = 3, 0, (0, 1)
    measured = {name: measure() for name, measure in pc7.pieces(config, tmp_path, lambda _: None).items()}
    points = measured["points"]["points"]
    assert [one["step"] for one in points] == [6, 12] * 12 and all(one["kl"] > 0 for one in points)
    assert words(pc7.judge(measured))[-1] == HOLDS
    run = of_run(pc7.where(config, tmp_path, measured["tune"]["rows"][0]))
    assert Shift(run.base, run.config)(Decoder(run.base.config), run.base.params) == {
        "target": measured["points"]["base"]["test"], "forgetting": 0.0, "kl": 0.0,
    }
