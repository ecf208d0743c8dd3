"""Weight deltas that are known put into a tree: as LoRA, or dense where a product would hold more numbers, and the methods that make room
for the same when they are read from a file.

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = LoRA(base=W, a=[L, R, in], b=[L, R, out], scale=[L])          methods = (lora(rank=R, ...),)

R is the highest rank of a stack's layers; rows past a layer's own are zero in both factors.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from peftjax.nn.kernels import Tied
from peftjax.nn.tree import get, put
from peftjax.peft.changes import Change, keys
from peftjax.peft.dense_delta import DenseDelta, dense_delta
from peftjax.peft.exactness import Error, Exactness
from peftjax.peft.factored import Factors, Matrix, dense, distance, kept, norm, rank_within, shape, spectrum
from peftjax.peft.lora import LoRA, lora
from peftjax.peft.rules import Rule, methods_of
from peftjax.peft.select import KERNELS, cuts, parameters, with_head

HEAD = "head/kernel"


@dataclasses.dataclass(frozen=True)
class Fit:
    """How much of a delta is held.

    Attributes:
        rank: at most so many; None for as many as `tolerance` asks for.
        tolerance: relative error at each kernel that is allowed; None, without a rank, for nothing but rounding.
        stacks: factors are held as they are, where nothing else is asked for.
        may_be_dense: where neither rank nor tolerance is given, a delta that no smaller product holds is held dense, on linear kernels.
    """

    rank: int | None = None
    tolerance: float | None = None
    stacks: bool = False
    may_be_dense: bool = False

    def __post_init__(self):
        if self.rank is not None and self.tolerance is not None:
            raise ValueError(f"a rank ({self.rank}) or a tolerance ({self.tolerance:g}) says how much is held, not both")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank {self.rank} is not positive")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance {self.tolerance:g} is a fraction of the norm, in [0, 1)")

    @property
    def is_exact(self) -> bool:
        """Whether nothing may be lost."""
        return self.rank is None and self.tolerance is None

    def __call__(self, matrix: Matrix) -> Factors:
        """The nearest factors, as float32 holds them."""
        if not (self.is_exact and self.stacks and isinstance(matrix, Factors) and len(matrix.a) <= min(shape(matrix))):
            found = spectrum(matrix)
            rank = rank_within(found.values, self.tolerance or 0.0)
            matrix = kept(found, rank if self.rank is None else min(rank, self.rank))
        return Factors(*(factor.astype(np.float32) for factor in matrix))


class Made(NamedTuple):
    """params: a new tree with the adapter; certificate: how far it is from what was asked for; methods: those that make room for it."""

    params: dict
    certificate: Exactness
    methods: tuple[Any, ...]


def put_changes(base: dict, wanted: Mapping[str, Callable[[], Change]], fit: Fit, name: str) -> Made:
    """The adapter called `name` whose changes are these, around what stands in `base`, which is not touched.

    Args:
        base: parameters without an adapter of that name.
        wanted: by path with the layer's number; read one after the other.
        fit: how they are held.

    Raises:
        ValueError: nothing is wanted; a kernel that the base has not, of another shape, or on a part of a scanned stack; numbers that are
            not finite.
    """
    if not wanted:
        raise ValueError("there is no change to put anywhere")
    wanted, apart = dict(wanted), False
    if HEAD in wanted and isinstance(get(base, HEAD), Tied | None):
        apart = _is_nothing(wanted[HEAD]())
        base = with_head(base, apart=name if apart else None)
    if apart:
        del wanted[HEAD]
    params, errors, rules = base, {}, {}
    for path, _, layers, value in parameters(base, KERNELS):
        own = keys(path, value.shape[0])
        there = [key for _, key in own if key in wanted]
        if there:
            _require_whole(path, layers, there)
            node, found = _around(value, [(key, wanted.pop(key)) for key in there], fit, name, stacked=layers is not None)
            params = put(params, path, node)
            for key, (error, rule) in found.items():
                errors[key], rules[key] = error, rule
    if wanted:
        known = [target.path for target in parameters(base, KERNELS)]
        raise ValueError(f"this base has no {', '.join(sorted(wanted)[:5])}; it has {', '.join(known)}")
    return Made(params, Exactness(errors), methods_of(rules, _layers(base), name, apart))


def lora_node(
    value: Any, parts: Sequence[Factors], scales: Sequence[float], biases: Sequence[np.ndarray] | None, name: str, stacked: bool
) -> LoRA:
    """LoRA around what stands at a path: one part, or with `stacked` one for each layer, of any ranks."""
    top = max(1, *(len(part.a) for part in parts))

    def leaf(rows):
        return jnp.asarray(np.stack(rows) if stacked else rows[0], jnp.float32)

    a, b = (leaf([np.pad(factor, [(0, top - len(factor)), (0, 0)]) for factor in factors]) for factors in zip(*parts, strict=True))
    bias = None if biases is None else leaf(biases)
    return LoRA(base=value, a=a, b=b, scale=leaf([np.float32(scale) for scale in scales]), dropout=None, name=name, bias=bias)


def _around(
    value: Any, wanted: Sequence[tuple[str, Callable[[], Change]]], fit: Fit, name: str, stacked: bool
) -> tuple[Any, dict[str, tuple[Error, Rule]]]:
    """(node, (error, rule) by key) of the layers of one path."""
    parts, made, biases, is_embedding = [], [], [], wanted[0][0].endswith("/embedding")
    for key, read in wanted:
        change = read()
        if shape(change.weight) != tuple(value.shape[-2:]):
            raise ValueError(f"{key}: a change of {shape(change.weight)} and a weight of {tuple(value.shape[-2:])}")
        if not change.is_finite():
            raise ValueError(f"{key}: the change holds numbers that are not finite; nothing was changed")
        asked, biases = change.weight, [*biases, change.bias]
        if fit.may_be_dense and fit.is_exact and not isinstance(asked, Factors) and not is_embedding and change.bias is None:
            part = np.asarray(asked, np.float32)
        else:
            part = fit(asked)
        size = norm(asked)
        parts.append(part)
        made.append((key, Error(distance(_float64(part), asked) / size if size else 0.0, size, None)))
    biased = any(bias is not None for bias in biases)
    if any(not isinstance(part, Factors) for part in parts) and not biased:
        values = [dense(part) for part in parts]
        node = DenseDelta(value, jnp.asarray(np.stack(values) if stacked else values[0], jnp.float32), name)
        return node, {key: (error, Rule(dense_delta)) for key, error in made}
    parts = [part if isinstance(part, Factors) else fit(part.astype(np.float64)) for part in parts]
    width = value.shape[-1]
    biases = [np.zeros(width) if bias is None else bias for bias in biases] if biased else None
    ranks = [len(part.a) for part in parts]
    node = lora_node(value, parts, [1.0] * len(parts), biases, name, stacked)
    return node, {
        key: (error._replace(rank=rank), Rule(lora, max(rank, 1), biased=biased)) for (key, error), rank in zip(made, ranks, strict=True)
    }


def _float64(part: Matrix) -> Matrix:
    return Factors(*(factor.astype(np.float64) for factor in part)) if isinstance(part, Factors) else part.astype(np.float64)


def _is_nothing(change: Change) -> bool:
    return change.bias is None and norm(change.weight) == 0


def _require_whole(path: str, layers: range | None, there: Sequence[str]) -> None:
    if layers is not None and len(there) < len(layers):
        numbers = {int(key.split("/")[1]) for key in there}
        raise ValueError(
            f"changes on layers {sorted(numbers)} are part of the scanned stack {path.partition('/')[0]} (layers {layers.start} to "
            f"{layers.stop - 1}), which has one set of adapters; cut the stack there: segments={cuts(set(layers), numbers)}"
        )


def _layers(base: dict) -> int:
    return max((target.layers.stop for target in parameters(base, KERNELS) if target.layers is not None), default=0)
