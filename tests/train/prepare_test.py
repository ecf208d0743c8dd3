"""From a config and a base to a state: segments chosen by the methods, unread adapters refused."""

import jax
import jax.numpy as jnp
import pytest
from tiny import TINY, base, train_batch

from peftjax.interop.base import Base
from peftjax.nn.tree import flatten, put
from peftjax.peft import lora, pfeiffer
from peftjax.peft.partition import combine, partition
from peftjax.train.config import default_config, methods
from peftjax.train.optimiser import CORES
from peftjax.train.parallel import compile_step
from peftjax.train.prepare import check_reads, prepare_model, segments_of
from peftjax.train.sharding import make_mesh


def prepared(*specifications):
    config = default_config()
    config.peft = methods(*specifications)
    return prepare_model(config, Base("tiny", TINY, base(TINY), None, ""), make_mesh())


def test_layers_choose_the_segments():
    found = prepared(lora(rank=2, layers=[1]))
    assert found.model.segments == (1, 1)
    assert all(path.startswith("blocks_1_2/") for path in flatten(found.state.trainable))


def test_the_layers_below_get_no_backward_pass():
    """The frozen segment is scanned once, forwards: its kernels meet no transposed product."""
    found = prepared(lora(rank=2, layers=[1]))
    whole = prepared(lora(rank=2))
    from peftjax.train.step import make_step

    def scans(subject):
        step = make_step(subject.model, subject.optimiser)
        return str(jax.make_jaxpr(step)(subject.state, subject.frozen, train_batch())).count("= scan[")

    assert scans(whole) == 2  # forwards and backwards
    assert scans(found) == 3  # below: forwards; above: forwards and backwards


@pytest.mark.slow  # compiles for ten seconds
def test_bfloat16_computes_and_float32_learns():
    """bfloat16 base and activations, float32 masters; the loss is that of float32 to the precision of bfloat16."""
    from peftjax.models.decoder import Decoder
    from peftjax.train.step import make_step

    found = prepared(lora(rank=2), pfeiffer(size=2, norm="both"))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), found.frozen)
    narrow = Decoder(TINY, dtype=jnp.bfloat16)
    state, metrics = jax.jit(make_step(narrow, found.optimiser))(found.state, half, train_batch())
    _, exact = jax.jit(make_step(found.model, found.optimiser))(found.state, found.frozen, train_batch())
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype("float32")}
    assert narrow.apply({"params": combine(state.trainable, half)}, train_batch().tokens).dtype == jnp.bfloat16
    assert float(metrics["loss"]) == pytest.approx(float(exact["loss"]), rel=0.02)
    assert float(metrics["grad_norm"]) == pytest.approx(float(exact["grad_norm"]), rel=0.05)


@pytest.mark.slow  # a step for each optimiser: fifteen seconds
@pytest.mark.parametrize("name", CORES)
def test_every_optimiser_is_placed_and_steps(name):
    config = default_config()
    config.peft = methods(lora(rank=2))
    config.train.batch_size, config.optimizer.name = 3, name
    mesh = make_mesh()
    found = prepare_model(config, Base("tiny", TINY, base(TINY), None, ""), mesh)
    step, place = compile_step(config, found, mesh)
    state, metrics = step(found.state, found.frozen, place(train_batch()))
    assert int(state.step) == 1 and float(metrics["loss"]) > 0


def test_segments_are_read_from_text():
    assert segments_of("auto", [lora(layers=[2])], 4) == (2, 1, 1)
    assert segments_of("1, 3", [], 4) == segments_of("(1,3)", [], 4) == (1, 3)
    with pytest.raises(ValueError, match="auto, or lengths that add up to 4 layers"):
        segments_of("halves", [], 4)


def test_dropout_is_noticed():
    assert prepared(lora(rank=2, dropout=0.1)).dropout and not prepared(pfeiffer(size=2)).dropout


def test_an_adapter_that_nothing_reads_is_refused():
    found = prepared(pfeiffer(size=2))
    params = combine(found.state.trainable, found.frozen)
    lost = put(params, "blocks/attn/mlp_out", params["blocks"]["mlp_out"])
    trainable, frozen = partition(lost)
    with pytest.raises(ValueError, match="read by nothing in the model: blocks/attn/mlp_out/default/down"):
        check_reads(found.model, trainable, frozen, train_batch())
    check_reads(found.model, found.state.trainable, found.frozen, train_batch())
