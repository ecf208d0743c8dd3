"""What LoftQ and QPiSSA quantised and the LoRA for it are written together, and are what a run starts from."""

import json

import jax
import pytest
import tiny_checkpoint
from tiny import equal_trees
from tiny_run import tiny_config

from peftjax.interop.base import load_base
from peftjax.interop.exchange.load import load_adapter
from peftjax.models.config import DecoderConfig
from peftjax.nn.kernels import dense
from peftjax.nn.tree import get
from peftjax.peft import attach, detach, lora, merge
from peftjax.train.config import default_config, methods
from peftjax.train.loop import run
from peftjax.train.population import run_population
from peftjax.train.prepare import prepare_model
from peftjax.train.quantised_start import ADAPTER, STARTS, write_start, written_with
from peftjax.train.sharding import make_mesh

CONFIG = DecoderConfig(vocab_size=300, width=64, layers=2, heads=4, kv_heads=2, head_size=16, ff=64, tied=True)
METHOD = lora(rank=4, targets=["q_proj", "down_proj"])
PATH = "blocks/attn/q/kernel"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """(quantised, dense)."""
    folder = tmp_path_factory.mktemp("hf")
    tiny_checkpoint.write(folder, CONFIG)
    return load_base(folder, quantise="nf4"), load_base(folder)


@pytest.mark.parametrize("start", STARTS)
def test_the_base_and_its_adapter_are_read_again_as_they_were_made(start, bases, tmp_path):
    base, whole = bases
    lost = write_start(tmp_path / "to", base, whole, METHOD, start, rounds=2)
    assert set(lost) == {PATH, "blocks/mlp/down/kernel"} and all(both < 0.98 * alone for alone, both in lost.values())
    again = load_base(tmp_path / "to")
    there = load_adapter(tmp_path / "to" / ADAPTER, again)  # which looks whether it is for this base
    near, weight = dense(merge(there.params)["blocks"]["attn"]["q"]["kernel"]), get(whole.params, PATH)
    assert float(((weight - near) ** 2).sum() / (weight**2).sum()) ** 0.5 == pytest.approx(lost[PATH][1], rel=1e-4)
    assert again.quantise == base.quantise
    equal_trees(get(detach(there.params), "blocks/mlp/up/kernel"), get(base.params, "blocks/mlp/up/kernel"))  # no target
    with pytest.raises(ValueError, match="the adapter was made for|another base"):
        load_adapter(tmp_path / "to" / ADAPTER, base)


def test_what_stands_there_is_not_replaced(bases, tmp_path):
    (tmp_path / "thesis.txt").write_text("...")
    with pytest.raises(FileExistsError, match="is no base of peftjax"):
        write_start(tmp_path, *bases, METHOD)
    with pytest.raises(ValueError, match=r"no start is called 'loftqq' .did you mean 'loftq'"):
        write_start(tmp_path / "to", *bases, METHOD, "loftqq")


def test_a_run_on_a_quantised_base_may_start_by_loftq(bases):
    """One round, which leaves the base that the run was given."""
    base, whole = bases
    config = default_config()
    config.peft = methods(lora(rank=4, init="loftq", targets=["q_proj", "down_proj"]))
    found = prepare_model(config, base, make_mesh(), batches=lambda: pytest.fail("nothing of the data is asked for"))
    equal_trees(
        {field: getattr(get(found.state.trainable, PATH), field) for field in "ab"},
        {field: getattr(get(STARTS["loftq"](attach(base.params, [METHOD], jax.random.key(0)), whole.params, rounds=1), PATH), field)
         for field in "ab"},
    )


@pytest.mark.slow  # a run, which compiles its step and its evaluation
def test_what_a_run_is_compared_with_is_the_base_with_its_lora(tmp_path):
    """What QPiSSA leaves quantised is no model by itself: of a run that learns nothing the losses before and after are the same."""
    config = tiny_config(tmp_path)
    uri = config.base.uri
    write_start(tmp_path / "to", load_base(uri, quantise="nf4:32"), load_base(uri), lora(rank=4), "qpissa", rounds=1)
    config.base.uri, config.adapter.path, config.peft = str(tmp_path / "to"), str(tmp_path / "to" / ADAPTER), []
    config.train.steps, config.optimizer.learning_rate, config.eval.generate = 1, 0.0, False
    together, alone = tmp_path / "member", run(config, tmp_path / "run")
    run_population([config], [together])
    for folder in (alone, together):
        result = json.loads((folder / "result.json").read_text())
        before, after = result["evaluations"][0], result["evaluations"][-1]
        assert (before["step"], after["step"]) == (0, 1)
        assert before["loss"] == pytest.approx(after["loss"], rel=1e-6) and abs(after["forgetting"]) < 1e-6
    held = load_base(tmp_path / "to")
    assert written_with(held) == "qpissa" and written_with(load_base(uri)) is None
