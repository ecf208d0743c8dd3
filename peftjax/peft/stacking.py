"""Adapters of one base stacked side by side, so that the rows of a batch may each have their own (`peftjax.peft.bank`).

    trees    [{... q/kernel: LoRA(W, a=[L, 4, in], ...)}, {... q/kernel: LoRA(W, a=[L, 16, in], ...), mlp_out: Bottleneck}]
    bank     {... q/kernel: LoRABank(W, a=[L, 2, 16, in], ...), mlp_out: BottleneckBank(down=[L, 1, M, D], ...)}

LoRA's relatives are in it as the plain LoRA that they are (`peftjax.peft.plain`), which may be of twice the rank. A place holds the
adapters that have something there, and what is shorter, or is not on all layers, is filled up with zeros.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Entry, Kernel, Tied
from peftjax.nn.tree import get, place, put, walk
from peftjax.peft.attach import adapters
from peftjax.peft.bank import BottleneckBank, LoRABank
from peftjax.peft.bottleneck import Bottleneck
from peftjax.peft.composed import Composed, ComposedEntry
from peftjax.peft.lora import LoRA
from peftjax.peft.plain import as_plain


class Part(NamedTuple):
    """What one adapter has at one place: its `number`, the `layers` that are covered (None: no stack), and the node or entry, whose name
    tells it from others of that adapter there."""

    number: int
    layers: range | None
    value: Any


class Form(NamedTuple):
    """Bottlenecks that differ in numbers only: where, how many of the same adapter act before them, and their static parts."""

    site: str
    before: int
    activation: str
    reads: str
    norm_before: bool
    norm_after: bool


def stack_adapters(base: dict, trees: Sequence[dict]) -> dict:
    """A tree with the adapters of all `trees` side by side over `base`, numbered as there; `choose` makes it usable.

    Args:
        base: parameters without adapters. Quantised kernels stay as they are, and no array of it is copied.
        trees: parameters of that base, each with one adapter or several that act together; their stacks may be cut otherwise.

    Raises:
        ValueError: no tree, adapters in `base`, or adapters made for other shapes.
        TypeError: an adapter that is neither LoRA, or a relative that is one as a function, nor bottleneck, or adapters that are composed.
    """
    trees = [as_plain(tree) for tree in trees]
    if not trees:
        raise ValueError("stack_adapters needs at least one tree with an adapter")
    if adapters(base):
        raise ValueError(f"base holds adapters ({', '.join(adapters(base))}); give it without them, as detach(params) does")
    kernels: dict[str, list[Part]] = {}
    entries: dict[Form, list[Part]] = {}
    for number, tree in enumerate(trees):
        composed = next((path for path, value in walk(tree) if isinstance(value, Composed | ComposedEntry)), None)
        if composed is not None:
            raise TypeError(f"adapters of tree {number} are composed at {composed}; a bank holds what acts one after another. Give it "
                            "decompose(params), or compose what is beside each other with BatchSplit")
        for logical, part in _loras(tree, number):
            kernels.setdefault(logical, []).append(part)
        for form, part in _bottlenecks(tree, number):
            entries.setdefault(form, []).append(part)
    if get(base, "head/kernel") is None and any(get(tree, "head/kernel") is not None for tree in trees):
        embeddings = kernels.get("embed/embedding", [])
        kernels["head/kernel"] = [*kernels.get("head/kernel", []), *_followers(trees, embeddings)]
        base = put(base, "head/kernel", Tied(get(base, "embed/embedding")))
    places = {path: place(path, value.shape[0] if value.shape else 0) for path, value in walk(base)}
    strange = set(kernels) - {logical for logical, _ in places.values()}
    if strange:
        raise ValueError(f"adapters stand on {', '.join(sorted(strange))}, which this base has not")
    for path, (logical, layers) in places.items():
        there = _on(layers, kernels.get(logical, []))
        if there:
            base = put(base, path, _lora_bank(get(base, path), layers, there, len(trees), path))
    stacks = {path.partition("/")[0]: layers for path, (_, layers) in places.items() if layers is not None}
    for count, form in enumerate(sorted(entries, key=lambda form: form[1:])):  # entries act in the order of their names
        for stack, layers in stacks.items() if form.site.startswith("blocks/") else [("", None)]:
            there = _on(layers, entries[form])
            if there:
                path = f"{stack}{form.site.removeprefix('blocks')}/bank{count:02d}"
                base = put(base, path, _bottleneck_bank(form, layers, there, len(trees), f"bank{count:02d}"))
    return base


def _loras(tree: dict, number: int) -> Iterator[tuple[str, Part]]:
    """(logical path, part) of every LoRA in a tree."""
    for path, value in walk(tree):
        while isinstance(value, Kernel) and hasattr(value, "name"):
            if not isinstance(value, LoRA):
                raise TypeError(
                    f"adapter {number} has {type(value).__name__} {value.name!r} at {path}; a bank holds LoRA and bottlenecks. "
                    "Use that adapter alone, or merged"
                )
            logical, layers = place(path, value.a.shape[0])
            yield logical, Part(number, layers, value)
            value = value.base


def _bottlenecks(tree: dict, number: int) -> Iterator[tuple[Form, Part]]:
    """(form, part) of every bottleneck in a tree."""
    found = [(place(path, 1).logical.rpartition("/")[0], path, value) for path, value in walk(tree) if isinstance(value, Entry)]
    for site, path, value in found:
        if not isinstance(value, Bottleneck):
            raise TypeError(
                f"adapter {number} has {type(value).__name__} {value.name!r} at {path}; a bank holds LoRA and bottlenecks. "
                "Use that adapter alone"
            )
        if value.gate is not None or value.annealed is not None:
            what = "gated" if value.gate is not None else "annealed"
            raise TypeError(
                f"adapter {number} has a bottleneck {value.name!r} at {path} that is {what}, for which a bank has no place. Use it alone"
            )
        names = sorted({entry.name for there, _, entry in found if there == site})
        norms = (value.norm_before is not None, value.norm_after is not None)
        form = Form(site, names.index(value.name), value.activation, value.reads, *norms)
        yield form, Part(number, place(path, value.down.shape[0]).layers, value)


def _followers(trees: Sequence[dict], embeddings: Sequence[Part]) -> list[Part]:
    """Where some adapters have a head apart from the tied embedding: what the others' changes of the embedding are there, transposed."""
    tied = [part for part in embeddings if get(trees[part.number], "head/kernel") is None]
    return [part._replace(value=LoRA(None, part.value.b, part.value.a, part.value.scale, None, part.value.name)) for part in tied]


def _on(layers: range | None, parts: Sequence[Part]) -> list[Part]:
    """The parts that lie on some of these layers."""
    return [part for part in parts if layers is None or set(part.layers) & set(layers)]


def _members(parts: Sequence[Part]) -> tuple[int, ...]:
    return tuple(sorted({part.number for part in parts}))


def _lora_bank(base: Any, layers: range | None, parts: Sequence[Part], of: int, path: str) -> LoRABank:
    """The node of one place. An adapter with several LoRAs there has the ranks of all."""
    inside, outside = base.shape[-2:]
    for part in parts:
        shape = part.value.a.shape[-1], part.value.b.shape[-1]
        if shape != (inside, outside):
            raise ValueError(f"adapter {part.number} at {path} is made for a weight of {shape}, and this base's is {(inside, outside)}")
    members = _members(parts)
    names = {number: sorted({part.value.name for part in parts if part.number == number}) for number in members}

    def named(number, name):
        return [part for part in parts if part.number == number and part.value.name == name]

    def rank(number, name):
        return max(part.value.a.shape[-2] for part in named(number, name))

    top = max(sum(rank(number, name) for name in names[number]) for number in members)

    def factor(field, *width):
        rows = []
        for number in members:
            each = [_joined(layers, named(number, name), field, (rank(number, name), *width)) for name in names[number]]
            row = jnp.concatenate(each, axis=-1 - len(width))
            rows.append(_padded(row, (top, *width)))
        return _side_by_side(layers, rows)

    bias = None
    if any(part.value.bias is not None for part in parts):
        biased = {number: [part for part in parts if part.number == number and part.value.bias is not None] for number in members}
        lead = () if layers is None else (len(layers),)
        zeros = jnp.zeros((*lead, outside))
        scaled = lambda value: value.scale[..., None] * value.bias  # noqa: E731
        bias = _side_by_side(layers, [_joined(layers, biased[n], scaled, (outside,)) if biased[n] else zeros for n in members])
    return LoRABank(
        base=base, a=factor(lambda value: value.a, inside), b=factor(lambda value: value.b, outside),
        scale=factor(lambda value: jnp.broadcast_to(value.scale[..., None], value.a.shape[:-1])), bias=bias, ids=None, members=members,
        of=of, name="bank",
    )


def _bottleneck_bank(form: Form, layers: range | None, parts: Sequence[Part], of: int, name: str) -> BottleneckBank:
    """The entry of one site and form."""
    members, width = _members(parts), parts[0].value.down.shape[-1]
    size = max(part.value.down.shape[-2] for part in parts)

    def field(read, *shape):
        return _side_by_side(layers, [_joined(layers, [p for p in parts if p.number == number], read, shape) for number in members])

    def channels(value):
        scale = value.scale if value.scale.ndim == value.up_bias.ndim else value.scale[..., None]
        return jnp.broadcast_to(scale, value.up_bias.shape)

    before, after = form.norm_before, form.norm_after
    return BottleneckBank(
        down=field(lambda v: v.down, size, width), down_bias=field(lambda v: v.down_bias, size), up=field(lambda v: v.up, size, width),
        up_bias=field(lambda v: v.up_bias, width), scale=field(channels, width),
        norm_before=field(lambda v: v.norm_before, width) if before else None,
        norm_before_bias=field(lambda v: v.norm_before_bias, width) if before else None,
        norm_after=field(lambda v: v.norm_after, width) if after else None,
        norm_after_bias=field(lambda v: v.norm_after_bias, width) if after else None,
        ids=None, activation=form.activation, reads=form.reads, members=members, of=of, name=name,
    )


def _joined(layers: range | None, parts: Sequence[Part], read: Callable[[Any], jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """One field of one adapter on `layers`, [L, *shape] or `shape`: its parts lie on different layers, and where none is are zeros."""
    if layers is None or parts[0].layers == layers:
        return _padded(read(parts[0].value), shape)
    made = jnp.zeros((len(layers), *shape))
    for part in parts:
        start, stop = max(layers.start, part.layers.start), min(layers.stop, part.layers.stop)
        value = _padded(read(part.value), shape)[start - part.layers.start:max(stop, start) - part.layers.start]
        made = made.at[start - layers.start:start - layers.start + len(value)].set(value)
    return made


def _padded(value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A value with zeros behind its last axes up to `shape`; axes before these stay."""
    lead = value.ndim - len(shape)
    return jnp.pad(value, [(0, 0)] * lead + [(0, to - of) for of, to in zip(value.shape[lead:], shape, strict=True)])


def _side_by_side(layers: range | None, rows: Sequence[jax.Array]) -> jax.Array:
    """One value for each member -> [L, K, ...], or [K, ...] outside a stack."""
    return jnp.stack(rows, axis=0 if layers is None else 1)
