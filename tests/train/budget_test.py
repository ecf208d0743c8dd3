"""Ranks for a config: within the budget, where the base's statistics ask for them, and in a config that can be trained."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_run import tiny_config

from peftjax.interop.base import load_base
from peftjax.nn.tree import flatten, get
from peftjax.peft import attach, lora, partition
from peftjax.peft.partition import size
from peftjax.peft.spec import from_data
from peftjax.train.budget import as_table, choose, write_config
from peftjax.train.config import check, from_file, methods


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    config = tiny_config(tmp_path_factory.mktemp("budget"))
    return config, load_base(config.base.uri)


@pytest.fixture(scope="module")
def chosen(tiny):
    return choose(tiny[0], parameters=2000, base=tiny[1], batches=2, targets=("q_proj", "up_proj"), max_rank=12, dropout=0.1)


def test_what_is_chosen_is_within_the_budget_and_is_what_is_attached(tiny, chosen):
    assert 1900 < chosen.parameters <= 2000 and len(set(chosen.ranks.values())) > 1
    params = attach(tiny[1].params, chosen.methods, jax.random.key(0))
    stored = sum(int(np.asarray(leaf).any(axis=-1).sum()) for path, leaf in flatten(partition(params)[0]).items() if path.endswith("/a"))
    assert stored == sum(chosen.ranks.values())
    assert all(get(params, path).dropout is not None for path in ("blocks/attn/q/kernel", "blocks/mlp/up/kernel"))


def test_the_table_says_what_was_bought(chosen):
    *lines, total, _ = as_table(chosen).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["blocks/attn/q", "blocks/mlp/up"]
    assert str(chosen.ranks["blocks/1/attn/q/kernel"]) in lines[2] and f"{chosen.parameters:,} parameters, chosen by gradient" in total


def test_what_a_run_will_count_is_said_where_stacks_are_padded(tiny, chosen):
    params = attach(tiny[1].params, chosen.methods, jax.random.key(0))
    assert chosen.padded == size(partition(params)[0])[0] > chosen.parameters
    assert f"A run's table will count {chosen.padded:,}" in as_table(chosen)
    assert "table will count" not in as_table(dataclasses.replace(chosen, padded=chosen.parameters))


def test_the_config_that_is_written_has_the_ranks_and_all_else_of_its_source(tiny, chosen, tmp_path):
    source = tmp_path / "source.py"
    source.write_text("from peftjax.train.config import default_config\n\n\ndef get_config(variant=''):\n    config = default_config()\n"
                      "    config.data.name, config.train.steps = variant or 'ha_intents', 7\n    return config\n")
    write_config(tmp_path / "ranks.py", source, chosen)
    write_config(tmp_path / "ranks.py", source, chosen)  # its own file may be replaced
    config = from_file(tmp_path / "ranks.py", "qa")
    check(config)
    assert (config.data.name, config.train.steps) == ("qa", 7)
    assert tuple(from_data(method.to_dict()) for method in config.peft) == chosen.methods
    with pytest.raises(FileExistsError, match="was not written by"):
        write_config(source, source, chosen)


def test_inputs_decide_too_and_other_words_are_refused(tiny, chosen):
    by_inputs = choose(tiny[0], nbytes=8000, by="inputs", base=tiny[1], batches=1, targets=("q_proj", "up_proj"))
    assert by_inputs.parameters <= 2000 and by_inputs.ranks != chosen.ranks
    with pytest.raises(ValueError, match=r"by is 'gradients' \(did you mean 'gradient'"):
        choose(tiny[0], parameters=1, by="gradients", base=tiny[1])
    assert methods(*chosen.methods)[0].method == lora.__name__
