"""The compiled program of a population: the base is there once, and no product with it has an axis of members."""

import re

import jax
import pytest
from tiny import TINY

from peftjax.interop.base import Base
from peftjax.models.decoder import init_params
from peftjax.nn.tree import flatten
from peftjax.peft import houlsby, lora
from peftjax.train.bench_population import Dense, population
from peftjax.train.config import default_config, methods
from peftjax.train.population.member import waiting
from peftjax.train.population.opening import make_mesh, placed
from peftjax.train.population.stack import width_for
from peftjax.train.prepare import prepare_model

MEMBERS, BATCH, LENGTH = 3, 2, 5


def members(method, count: int = MEMBERS) -> list:
    """Without folders, on the tiny base, with batches of their own."""
    base, made = Base("tiny", TINY, init_params(TINY, jax.random.key(7)), None, ""), []
    for number in range(count):
        config = default_config()
        config.peft, config.train.batch_size, config.data.length = methods(method), BATCH, LENGTH
        config.train.seed, config.optimizer.warmup = number, 1
        if not made:
            mesh = make_mesh(count)
            base = placed(base, config, mesh)
        prepared = prepare_model(config, base, mesh)
        inputs = type("Inputs", (), {"train": Dense(TINY.vocab_size, BATCH, LENGTH, number)})
        made.append(waiting(config, inputs, None, prepared, prepared.state, flatten(base.params)))
    return made


def shapes_of(text: str) -> set[tuple[int, ...]]:
    """Of all arrays in a compiled program."""
    return {tuple(int(n) for n in found.split(",")) for found in re.findall(r"[a-z]+[0-9]*\[([0-9]+(?:,[0-9]+)+)\]", text)}


@pytest.mark.parametrize("method", [lora(rank=3, dropout=0.1), houlsby(size=3)], ids=["lora", "houlsby"])
def test_the_base_has_no_axis_of_members(method):
    made = members(method)
    program = population(made)
    assert program.stacks[0].width == MEMBERS  # small batches: all are mapped over together
    [compiled] = [lowered.compile() for lowered in program.lowered()]
    kernels = {leaf.shape[-2:] for path, leaf in flatten(program.stacks[0].form.base).items() if path.endswith("/kernel")}
    assert len(kernels) >= 4
    found = shapes_of(compiled.as_text())
    for rows, columns in kernels:
        for shape in ((rows, columns), (columns, rows)):
            assert not {(MEMBERS, *shape), (MEMBERS, TINY.layers, *shape), (TINY.layers, MEMBERS, *shape)} & found, shape
    assert any(shape[0] == MEMBERS and 3 in shape[1:] for shape in found)  # the thin ones have it


def test_width_is_what_the_machine_multiplies_best():
    assert [width_for(8, tokens, 576, backend="cpu") for tokens in (32, 256, 4096)] == [8, 1, 1]
    assert width_for(8, 256, 128, backend="cpu") == 8  # a small model's rows are short
    assert width_for(8, 32, 576, backend="cpu", state=59 << 20) == 4  # LoRAs of rank 16 on SmolLM2
    assert width_for(8, 32, 576, backend="cpu", state=1 << 30) == 1 and width_for(8, 32, 576, backend="gpu", state=1 << 30) == 8
    assert width_for(9, 64, 576, backend="cpu") == 5  # two chunks, as even as can be
    assert width_for(16, 32, 128, backend="cpu", thinned=True) == 4 and width_for(3, 32, 128, backend="cpu", thinned=True) == 1
    assert width_for(16, 32, 128, backend="gpu", thinned=True) == 16
    assert width_for(8, 256, 576, backend="gpu") == 8 and width_for(5, 256, 576, devices=2, backend="cpu") == 2


def losses(program, made, steps: int) -> dict[int, list[float]]:
    """Of each member by its number, over so many steps."""
    found = {number: [] for number in range(len(made))}
    for _ in range(steps):
        there = {id(m) for stack in program.stacks for _, m in stack.there}
        for _, stepped in program.step({id(m): m.inputs.train.at(m.step) for m in made if id(m) in there}):
            found[made.index(stepped.member)].append(stepped.metrics["loss"])
    return found


@pytest.mark.parametrize("width", [1, pytest.param(2, marks=pytest.mark.slow)])  # ten seconds each
def test_chunk_after_chunk_is_the_whole(width):
    made, again = (members(lora(rank=3, dropout=0.1)) for _ in range(2))
    chunked, whole = population(made, width), population(again)
    assert chunked.stacks[0].chunks == -(-MEMBERS // width) and whole.stacks[0].chunks == 1
    found, expected = losses(chunked, made, 4), losses(whole, again, 4)
    for number in range(MEMBERS):
        assert found[number] == pytest.approx(expected[number], rel=1e-5)
    chunked.stacks[0].drop(0)  # the last member moves to the front, into an array that was stepped already
    chunked.stacks[0].drop(1)
    rest = losses(chunked, made, 2)
    assert chunked.stacks[0].working() == 1 and chunked.compilations == 1
    assert rest[2] == pytest.approx(losses(whole, again, 2)[2], rel=1e-5) and not rest[0] and not rest[1]


def test_stacks_share_a_program_unless_stepped_by_chunks():
    made = members(lora(rank=3)) + members(houlsby(size=3), 2)
    assert [len(group) for group, _ in population(made)._groups] == [2]
    apart = population(made := members(lora(rank=3)) + members(houlsby(size=3), 2), width=2)
    losses(apart, made, 2)
    assert [stack.chunks for stack in apart.stacks] == [2, 1] and len(apart._groups) == apart.compilations == 2
