"""Domains x languages: what the library may see, copies with nothing learnt, the arithmetic of the verdict, and the whole in miniature."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from study.checks.rows import hash_of
from tiny_run import write_base

from peftjax.interop.base import load_base
from peftjax.interop.exchange.adapter import extract
from peftjax.interop.exchange.native import read_native
from peftjax.nn.tree import flatten
from peftjax.peft import attach, partition, pfeiffer
from peftjax.study.checks import pairs
from peftjax.study.checks.composed import AVERAGE, BASE, STACK, trees
from peftjax.study.checks.conduct import conduct
from peftjax.study.checks.domain_language import TRAINED, UNTRAINED, compare, differences, judge
from peftjax.study.checks.finding import FAILS, HOLDS, OPEN
from peftjax.study.checks.library import adapters, scrambled
from peftjax.study.checks.pairs import FUSION, LORA, RANDOM, PairRun, pair_config
from peftjax.train.config import check

CONFIG = Path(__file__).parents[3] / "configs" / "studies" / "domain_language.py"
PAIRS, SEEDS = ("switch-de", "timer-fr", "media-es"), (0, 1, 2)


def config(variant=""):
    return runpy.run_path(str(CONFIG))["get_config"](variant)


def test_no_adapter_of_the_library_sees_its_pair():
    ours = config()
    known = pairs.library(ours)
    assert len(known) == 8
    for pair in pairs.pairs(ours):
        for name in (pairs.language_adapter(pair), pairs.domain_adapter(pair)):
            languages, domains = known[name]
            assert pair.language not in languages or pair.domain not in domains
            asked = pairs.library_config(ours, name, 7)
            check(asked)
            assert asked.data.options.languages == languages and asked.data.options.domains == domains and asked.train.seed == 7
        assert pair.language in known[pairs.language_adapter(pair)][0] and pair.domain in known[pairs.domain_adapter(pair)][1]


def test_a_language_that_is_in_two_pairs_is_refused():
    ours = config()
    ours.pairs = (("switch", "de"), ("timer", "de"))
    with pytest.raises(ValueError, match="config.pairs has the languages de, de"):
        pairs.pairs(ours)


@pytest.mark.parametrize("arm", TRAINED)
def test_arms_differ_in_nothing_but_what_is_trained(arm):
    ours = config()
    pair = pairs.pairs(ours)[0]
    run = pair_config(ours, PairRun(arm, 16, pair, 3e-3, 1), Path("library"))
    check(run)
    assert run.data.rows == 16 and run.optimizer.learning_rate == 3e-3 and run.train.seed == 1
    assert run.data.options.to_dict() == {"cap": 36, "cap_other": 36, "languages": (pair.language,), "domains": (pair.domain,)}
    held = [(one.path, one.name, one.train) for one in run.adapters]
    assert held == ([] if arm == LORA else [
        (str(Path("library", *(["random"] if arm == RANDOM else []), folder)), name, False)
        for name, folder in (("language", f"language-{pair.language}"), ("domain", f"domain-{pair.domain}"))
    ])
    assert [method.method for method in run.peft] == (["lora"] if arm == LORA else ["fusion"])


def test_a_random_copy_has_the_same_values_in_other_places(tmp_path):
    base = load_base(str(write_base(tmp_path)))
    methods = [pfeiffer(size=4)]
    adapter = extract(moved(attach(base.params, methods, jax.random.key(0))), methods)
    copy = scrambled(adapter, 3)
    changed = 0
    for path, piece in adapter.pieces.items():
        for field, array in piece.arrays.items():
            other = copy.pieces[path].arrays[field]
            assert other.shape == array.shape and np.array_equal(np.sort(other, axis=None), np.sort(array, axis=None))
            changed += not np.array_equal(other, array)
    assert changed >= 2 * 2  # both matrices of both layers
    again = scrambled(adapter, 3)
    assert all(np.array_equal(again.pieces[p].arrays[f], a) for p, piece in copy.pieces.items() for f, a in piece.arrays.items())


def moved(params):
    """Every trainable value away from its start, as after training."""
    trainable, _ = partition(params)
    paths = set(flatten(trainable))
    leaves, tree = jax.tree_util.tree_flatten(params)
    flat = list(flatten(params))
    rng = np.random.default_rng(0)
    return jax.tree_util.tree_unflatten(
        tree, [leaf + rng.standard_normal(leaf.shape).astype("float32") if path in paths else leaf
               for path, leaf in zip(flat, leaves, strict=True)]
    )


def row(arm, pair, seed, loss, spread=0.0, items=20):
    """Items of four tokens, two of a group, with this loss a token on average and a spread of their own."""
    noise = np.random.default_rng([seed, hash_of(arm), hash_of(pair)]).standard_normal(items)
    nll = 4 * (loss + spread * (noise - noise.mean()))
    return {
        "arm": arm, "pair": pair, "seed": seed, "ids": [f"{pair}-{n}" for n in range(items)], "nll": nll.tolist(), "tokens": [4] * items,
        "groups": [f"{pair}-{n // 2}" for n in range(items)], "error": None, "parameters": 100 + hash_of(arm),
    }


def measured(losses, spread=0.02):
    """What a check measures where the loss of (arm, rows) is known."""
    trained = [row(arm, pair, seed, losses[arm, size], spread) | {"size": size} for arm in TRAINED for size in (16, 128)
               for pair in PAIRS for seed in SEEDS]
    rows = [row(arm, pair, seed, losses.get(arm, 5.0), spread) for arm in UNTRAINED for pair in PAIRS for seed in SEEDS]
    own = [{"adapter": part, "pair": pair, "seed": seed, BASE: 6.0, "alone": 2.0, STACK: 3.0, AVERAGE: 2.5}
           for part in ("language", "domain") for pair in PAIRS for seed in SEEDS]
    names = [f"{arm}, {size}" for arm in TRAINED for size in (16, 128)]
    tune = {"at": dict.fromkeys(names, 1e-2), "scores": {name: {"0.01": 1.0} for name in names}, "edge": names[:1]}
    return {"library": [{"name": "language-de", "seed": 0, "size": 500}], "untrained": {"rows": rows, "own": own}, "tune": tune,
            "measure": trained}


GOOD = {(LORA, 16): 2.0, (FUSION, 16): 1.5, (RANDOM, 16): 2.2, (LORA, 128): 1.0, (FUSION, 128): 1.2, (RANDOM, 128): 1.5, STACK: 3.0}


def test_differences_count_each_pair_alike():
    a = [row("a", "x", 0, 1.0, items=30), row("a", "y", 0, 3.0, items=10)]
    b = [row("b", "x", 0, 0.5, items=30), row("b", "y", 0, 1.0, items=10)]
    d, groups, by_pair = differences(a, b)
    assert d.shape == (1, 40) and len(set(groups)) == 20
    assert by_pair == {"x": pytest.approx(0.5), "y": pytest.approx(2.0)} and d.mean() == pytest.approx(1.25)
    with pytest.raises(ValueError, match="the same pairs and seeds"):
        differences(a, b[:1])
    with pytest.raises(ValueError, match="the same test items"):
        differences(a, [b[0] | {"ids": ["other"] * 30}, b[1]])


def test_a_comparison_of_equal_arms_finds_nothing():
    rows = {"a": [row("a", p, s, 1.0, 0.3) for p in PAIRS for s in SEEDS], "b": [row("b", p, s, 1.0, 0.3) for p in PAIRS for s in SEEDS]}
    one, = compare(rows, [("a", "b")], 0.02)
    assert one.effect.mean == pytest.approx(0, abs=1e-12) and one.effect.units == 30 and one.word == OPEN and one.pairs == 3


def test_predictions_that_come_true_hold_and_others_do_not():
    finding = judge(measured(GOOD))
    assert [claim.verdict for claim in finding.claims[:5]] == [HOLDS, "reported", HOLDS, HOLDS, HOLDS]
    assert "-0.500" in finding.claims[0].measured and "lower in 3 of 3 pairs" in finding.claims[0].measured
    assert len(finding.claims) == len({claim.what for claim in finding.claims}) == 2 * 6 + 4
    few = measured(GOOD)
    once = judge(few | {"measure": [one for one in few["measure"] if one["size"] == 16]})
    assert len({claim.what for claim in once.claims}) == len(once.claims) == 6 + 4
    worse = judge(measured(GOOD | {(FUSION, 16): 2.5, STACK: 6.0}))
    assert [worse.claims[n].verdict for n in (0, 2, 4)] == [FAILS, FAILS, FAILS]
    assert judge(measured(GOOD | {(FUSION, 16): 2.0}, spread=0.5)).claims[0].verdict == OPEN


def test_the_tables_tell_parameters_rates_and_interference():
    finding = judge(measured(GOOD))
    losses = {line[0]: line for line in finding.tables[0].rows}
    assert losses["LoRA, 16"][1:3] == (100 + hash_of(LORA), "0.01 (edge)") and losses["LoRA, 16"][-1] == "2.000"
    assert losses["stack"][1:3] == (0, "") and losses["stack"][-1] == "3.000"
    assert finding.tables[1].rows[0] == ("language", "6.000", "2.000", "3.000", "2.500")
    assert set(finding.plot.series) == {*TRAINED, *UNTRAINED}


@pytest.mark.slow
def test_the_whole_in_miniature(tmp_path):
    """About a minute: libraries of two pairs, compositions, tuning and measuring on a random base, and nothing twice."""
    ours = config("runlocal")
    ours.run.base.uri = str(write_base(tmp_path / "base"))
    ours.run.data.options = {"cap": 12, "cap_other": 12}
    ours.library.steps, ours.run.train.steps, ours.seeds = 2, 2, (0, 1)
    folder = tmp_path / "check"
    report = conduct(ours, folder)
    text = report.read_text()
    assert "fusion of random, 16" in text and "Interference" in text and (folder / "plot.png").exists()
    found = json.loads((folder / "result.json").read_text())["measured"]
    assert len(found["measure"]) == 3 * 2 * 2 and all(one["error"] is None for one in found["measure"])
    assert len(found["untrained"]["rows"]) == 5 * 2 * 2 and len(found["library"]) == 4 * 3
    counts = {one["arm"]: one["parameters"] for one in found["measure"]}
    assert counts[FUSION] == counts[RANDOM] == 2 * (3 * 32**2 + 32)
    base = load_base(ours.run.base.uri)
    pair = pairs.pairs(ours)[0]
    both = trees(base, adapters(folder, 0), pair)
    assert set(both) == set(UNTRAINED)
    learnt = read_native(adapters(folder, 0) / pairs.language_adapter(pair))
    assert learnt.base == base.fingerprint
    told = []
    conduct(ours, folder, told.append)
    assert not any("runs to do" in line for line in told)
