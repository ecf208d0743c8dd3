"""Compositions: how adapters of one tree act together, as data.

    Stack("tone", Fuse("en", "de"), "task")                 one after another, the first one nearest to the weight
    Average({"a": 0.7, "b": 0.3})                           the weighted mean of what comes out
    BatchSplit("en", "de"), Split("intro", "body")          each row, or each position, by one of them (`peftjax.peft.route`)
    Parallel("en", "de")                                    one copy of the batch for each
    Fuse("en", "de", by="mix")                              attention over what they do (`peftjax.peft.fusion`)

A composition is the name of an adapter, or a block of compositions, however deep. `peftjax.peft.compose` puts it into a tree. The blocks
are those of AdapterHub (2311.11077, 2023). As data, which a config holds, a block is a mapping from what it is to its children, with its
options beside: {"stack": ["tone", {"fuse": ["en", "de"], "by": "mix"}, "task"]}, {"average": ["a", "b"], "weights": [0.7, 0.3]}.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from peftjax.hints import did_you_mean


class Block:
    """What all blocks have: `children`, names or blocks. In a tree, a child that has nothing at a place is None there."""

    children: tuple["Composition", ...]
    word: ClassVar[str]
    joins: ClassVar[bool] = True  # the outcomes of its children into one

    def over(self, *children: "Composition", **options: Any) -> "Block":
        """The same block with other children, and other options."""
        other = copy.copy(self)
        for field, value in {"children": children, **options}.items():
            object.__setattr__(other, field, value)
        return other

    def _set(self, children: Sequence[Any], **options: Any) -> None:
        if not children:
            raise ValueError(f"{type(self).__name__} needs at least one adapter")
        for child in children:
            if not isinstance(child, str | Block):
                raise TypeError(f"{type(self).__name__} holds names of adapters and blocks, not {child!r}")
        for field, value in {"children": tuple(children), **options}.items():
            object.__setattr__(self, field, value)


Composition = str | Block


@dataclasses.dataclass(frozen=True, init=False)
class Stack(Block):
    """One after another: the first stands nearest to the weight, or is the first that a value at a site passes. Low-rank updates add up."""

    children: tuple[Composition, ...]

    word, joins = "stack", False

    def __init__(self, *children: Composition):
        self._set(children)


@dataclasses.dataclass(frozen=True, init=False)
class Average(Block):
    """The mean of what comes out of the children, by `weights` over their sum (default: all alike); `Average({"a": 0.7, "b": 0.3})`."""

    children: tuple[Composition, ...]
    weights: Any = None  # in a tree: where the numbers are

    word = "average"

    def __init__(self, *children: Composition | Mapping[str, float], weights: Sequence[float] | None = None):
        if len(children) == 1 and isinstance(children[0], Mapping):
            children, weights = tuple(children[0]), tuple(children[0].values())
        self._set(children, weights=None if weights is None else tuple(weights))
        if weights is not None and len(self.weights) != len(children):
            raise ValueError(f"Average has {len(children)} children and {len(self.weights)} weights")


@dataclasses.dataclass(frozen=True, init=False)
class BatchSplit(Block):
    """Each row of the batch by one child: the first `sizes[0]` rows by the first, and so on, or as `route(params, ids, at)` says."""

    children: tuple[Composition, ...]
    sizes: tuple[int, ...] | None = None
    at: str = "rows"

    word = "batch_split"

    def __init__(self, *children: Composition, sizes: Sequence[int] | None = None, at: str = "rows"):
        self._set(children, sizes=_sizes(self, children, sizes), at=at)


@dataclasses.dataclass(frozen=True, init=False)
class Split(Block):
    """Each position by one child: the first `sizes[0]` positions of every line by the first, and so on, or as `route` says."""

    children: tuple[Composition, ...]
    sizes: tuple[int, ...] | None = None
    at: str = "positions"

    word = "split"

    def __init__(self, *children: Composition, sizes: Sequence[int] | None = None, at: str = "positions"):
        self._set(children, sizes=_sizes(self, children, sizes), at=at)


@dataclasses.dataclass(frozen=True, init=False)
class Parallel(Block):
    """One copy of the batch for each child, one after another as `in_parallel` makes them."""

    children: tuple[Composition, ...]

    word = "parallel"

    def __init__(self, *children: Composition):
        self._set(children)


@dataclasses.dataclass(frozen=True, init=False)
class Fuse(Block):
    """Attention over what the children do, by the adapter called `by`, attached with `fusion(of=..., name=by)`."""

    children: tuple[Composition, ...]
    by: str = "fusion"

    word = "fuse"

    def __init__(self, *children: Composition, by: str = "fusion"):
        self._set(children, by=by)


BLOCKS = {block.word: block for block in (Stack, Average, BatchSplit, Split, Parallel, Fuse)}
ROUTES = BatchSplit | Split | Parallel


def names(composition: Composition) -> Iterator[str]:
    """The adapters of a composition, in the order in which it names them."""
    if isinstance(composition, str):
        yield composition
        return
    for child in composition.children:
        if child is not None:
            yield from names(child)
    if isinstance(composition, Fuse):
        yield composition.by


def blocks(composition: Composition) -> Iterator[Block]:
    """The blocks of a composition, each before those in it."""
    if isinstance(composition, Block):
        yield composition
        for child in composition.children:
            yield from blocks(child)


def to_data(composition: Composition) -> Any:
    """Plain data."""
    if isinstance(composition, str):
        return composition
    data = {composition.word: [to_data(child) for child in composition.children]}
    for field in dataclasses.fields(composition)[1:]:
        value = getattr(composition, field.name)
        if value != field.default:
            data[field.name] = list(value) if isinstance(value, tuple) else value
    return data


def from_data(data: Any) -> Composition:
    """The composition that some data describe.

    Raises:
        ValueError: no such block or option, with the nearest right one.
    """
    if isinstance(data, str | Block):
        return data
    if not isinstance(data, Mapping):
        raise ValueError(f'a composition is a name or a mapping like {{"stack": ["a", "b"]}}, not {data!r}')
    words = [word for word in data if word in BLOCKS]
    if len(words) != 1:
        near = "".join(did_you_mean(str(word), BLOCKS) for word in data)
        raise ValueError(f"a block of a composition says once what it is, of {', '.join(BLOCKS)}; here is {dict(data)!r}{near}")
    block, children = BLOCKS[words[0]], data[words[0]]
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items() if name != words[0]}
    allowed = [field.name for field in dataclasses.fields(block)[1:]]
    for name in options:
        if name not in allowed:
            raise ValueError(f"{words[0]} has no option {name!r}{did_you_mean(name, allowed)}; options are {', '.join(allowed) or 'none'}")
    if isinstance(children, Mapping):
        if block is not Average:
            raise ValueError(f"{words[0]} has its children in a list; a mapping, to their weights, is for average")
        return Average(dict(children))
    return block(*map(from_data, [children] if isinstance(children, str) else children), **options)


def _sizes(block: Block, children: Sequence[Any], sizes: Sequence[int] | None) -> tuple[int, ...] | None:
    if sizes is None:
        return None
    if len(sizes) != len(children) or min(sizes) < 0:
        raise ValueError(f"{type(block).__name__} has {len(children)} children and sizes {list(sizes)}: one for each, from 0")
    return tuple(int(size) for size in sizes)
