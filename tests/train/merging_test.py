"""Adapter directories and runs merged into one directory, which every other command reads."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from tiny_run import tiny_config, write_base

from peftjax.interop.base import load_base
from peftjax.interop.exchange.adapter import extract
from peftjax.interop.exchange.load import load_adapter
from peftjax.interop.exchange.native import write_native
from peftjax.interop.exchange.peft_write import write_peft
from peftjax.models.decoder import cut
from peftjax.nn.tree import get
from peftjax.peft import attach, bottleneck, cut_points, lora, merge, vera
from peftjax.peft.mixing import WAYS, linear, ties
from peftjax.train.config import methods
from peftjax.train.export import export
from peftjax.train.loop import run
from peftjax.train.merging import found_at, merge_adapters, way_named
from peftjax.train.quantised_start import ADAPTER, write_start

Q = "blocks/attn/q/kernel"
METHODS = {
    "tone": lora(rank=2, alpha=3, targets=["q_proj", "up_proj"]),
    "task": lora(rank=3, alpha=12, targets=["q_proj", "down_proj"], layers=(1,)),
    "thin": vera(rank=4, targets="q_proj"),
    "network": bottleneck(size=4),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tiny base and adapters for it, one of them in HF PEFT's form."""
    folder = tmp_path_factory.mktemp("merging")
    on = load_base(write_base(folder / "base"))
    for name, method in METHODS.items():
        params = tiny.moved(attach(cut(on.params, on.config, cut_points([method], 2)), [method], jax.random.key(0)))
        adapter = extract(params, [method], base=on.fingerprint, tokenizer=on.tokenizer.fingerprint, lineage={"made": name})
        if name == "tone":
            write_peft(folder / name, adapter, on.config, on.uri)
        else:
            write_native(folder / name, adapter, on)
    return folder


def delta(folder, on):
    """What an adapter directory adds to q [L, in, out]."""
    merged = cut(merge(load_adapter(folder, on).params), on.config, ())
    return np.asarray(get(merged, Q) - get(on.params, Q))


def test_two_directories_become_one_that_says_where_it_comes_from(places, tmp_path):
    found = found_at([str(places / "tone"), str(places / "task")], str(places / "base"))
    lines, on = [], found["tone"].base
    certificate = merge_adapters(found, [0.5, -2.0], linear(), tmp_path / "out", say=lines.append)
    wanted = 0.5 * delta(places / "tone", on) - 2 * delta(places / "task", on)
    np.testing.assert_allclose(delta(tmp_path / "out", on), wanted, atol=1e-5)
    assert certificate.is_exact and "exact to rounding" in lines[-1] and len(lines) == 5
    assert lines[0] == "linear of 0.5 x tone, -2 x task" and lines[1].startswith("tone ")
    stored = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert stored["exact"] and stored["weights"] == {"tone": 0.5, "task": -2.0} and stored["kernels"]["blocks/1/attn/q/kernel"]["rank"] == 5
    lineage = load_adapter(tmp_path / "out", on).adapter.lineage["merged"]
    assert lineage["from"]["task"]["lineage"] == {"made": "task"} and lineage["way"] == "linear"
    assert (tmp_path / "out" / "spectra.png").read_bytes().startswith(b"\x89PNG")


def test_a_result_is_exported_and_merged_again(places, tmp_path):
    merge_adapters(found_at([str(places / "thin")], str(places / "base")), None, linear(), tmp_path / "thin", say=lambda _: None)
    (again,) = found_at([str(tmp_path / "thin")], str(places / "base")).values()
    (folder,) = export(again, tmp_path / "out", ["peft"], say=lambda _: None)
    np.testing.assert_allclose(delta(folder, again.base), delta(places / "thin", again.base), atol=1e-5)


@pytest.mark.parametrize("as_lora", [False, True])
def test_what_no_rank_holds_is_dense_unless_lora_is_asked_for(places, tmp_path, as_lora):
    found = found_at([str(places / "tone"), str(places / "thin")], str(places / "base"))
    assert merge_adapters(found, [1, 1], ties(density=0.5), tmp_path / "out", as_lora=as_lora, say=lambda _: None).is_exact
    (again,) = found_at([str(tmp_path / "out")], str(places / "base")).values()
    assert {type(method).__name__ for method in again.methods} == {"lora" if as_lora else "dense_delta"}


def test_nothing_is_written_where_something_is_refused(places, tmp_path):
    base, quiet = str(places / "base"), {"say": lambda _: None}
    with pytest.raises(TypeError, match="a network at a site changes no weight"):
        merge_adapters(found_at([str(places / "network")], base), None, linear(), tmp_path / "out", **quiet)
    both = found_at([str(places / "tone"), str(places / "tone")], base)
    assert list(both) == ["tone", "tone-2"]
    with pytest.raises(ValueError, match="2 adapters and 1 weights"):
        merge_adapters(both, [1.0], linear(), tmp_path / "out", **quiet)
    (tmp_path / "mine").mkdir(), (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is no export of peftjax"):
        merge_adapters(both, None, linear(), tmp_path / "mine", **quiet)
    with pytest.raises(ValueError, match="name adapters to merge"):
        found_at([])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_without_weights_what_takes_a_mean_takes_it_once(places, tmp_path):
    """Of one adapter twice both the average and the mean of those that agree are that adapter."""
    for name in ("linear", "ties", "dare"):
        way = way_named(name) if name == "linear" else way_named(name, density=1.0, **({"elect": True} if name == "dare" else {}))
        twice = found_at([str(places / "tone"), str(places / "tone")], str(places / "base"))
        merge_adapters(twice, None, way, tmp_path / name, say=lambda _: None)
        on = twice["tone"].base
        np.testing.assert_allclose(delta(tmp_path / name, on), delta(places / "tone", on), atol=1e-6)


def test_what_made_up_for_quantising_still_does_in_a_mixture(tmp_path):
    path = write_base(tmp_path / "base")
    quantised = load_base(path, quantise="nf4:32")
    write_start(tmp_path / "held", quantised, load_base(path), lora(rank=2, targets="q_proj"), rounds=1)
    held = load_base(tmp_path / "held")
    method = lora(rank=2, targets="down_proj")
    write_native(tmp_path / "other", extract(tiny.moved(attach(held.params, [method], jax.random.key(0))), [method], base=held.fingerprint,
                                             tokenizer=held.tokenizer.fingerprint), held)
    places = [str(tmp_path / "held" / ADAPTER), str(tmp_path / "other")]
    merge_adapters(found_at(places, str(tmp_path / "held")), [1, 1], linear(), tmp_path / "out", say=lambda _: None)
    (made,) = found_at([str(tmp_path / "out")], str(tmp_path / "held")).values()
    assert made.lineage["start"] == "loftq"
    said = []
    export(made, tmp_path / "exported", ["peft"], say=said.append)
    assert "for the quantised base alone" in said[0]


def test_ways_are_named_with_their_settings():
    assert way_named("ties", density=0.3, election=None) == ties(density=0.3) and all(way_named(name) == WAYS[name]() for name in WAYS)
    with pytest.raises(ValueError, match=r"no way to merge is called 'tie' \(did you mean 'ties'"):
        way_named("tie")
    with pytest.raises(ValueError, match="linear has no density; it has no settings"):
        way_named("linear", density=0.3)


@pytest.mark.slow  # trains a run, and starts a process
def test_a_run_beside_a_directory_from_the_command_line(tmp_path):
    config = tiny_config(tmp_path)
    config.peft = methods(lora(rank=2, alpha=4, targets=["q_proj"]))
    config.train.steps, config.eval.before, config.eval.every, config.eval.generate = 2, False, 0, False
    work = run(config, tmp_path / "run")
    on = found_at([str(work)])["run"]
    export(on, tmp_path / "exported", ["peftjax"], say=lambda _: None)
    script = Path(__file__).parents[2] / "scripts" / "merge.py"
    done = subprocess.run(
        [sys.executable, str(script), "--adapters", f"{work},{tmp_path / 'exported' / 'peftjax'}", "--weights", "0.25,0.75", "--method",
         "svd", "--rank", "2", "--to", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "exact to rounding" in done.stdout  # two of one rank and one direction are of that rank
    np.testing.assert_allclose(delta(tmp_path / "out", on.base), delta(tmp_path / "exported" / "peftjax", on.base), atol=1e-6)
