"""FourierFT: an update with a few trained coefficients of its Fourier transform (2405.03003, 2024).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = FourierFT(base=W, spectrum=[L, n], rows=[L, n], columns=[L, n], scale=[L])

    ΔW = scale · Re(IFFT2(F)),      F zero but for F[rows, columns] = spectrum

Coefficients start at zero: the start is the base exactly (HF PEFT starts them at N(0, 1) unless asked). Which they are is part of the tree
(int32), so that no generator is needed to read a checkpoint. They are drawn as PyTorch does for the same seed, since HF PEFT stores the
seed alone. In HF PEFT: spectrum is `fourierft_spectrum`, columns and rows the first and second line of `indices`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.nn.kernels import node
from peftjax.peft.bounds import require_known, require_positive, require_rate
from peftjax.peft.delta import Delta, wrap
from peftjax.peft.keys import Draw
from peftjax.peft.ranks import at_once
from peftjax.peft.select import Target
from peftjax.peft.sparse import scatter

INITS = ("zeros", "normal")


@node(arrays=("base", "spectrum", "rows", "columns", "scale", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class FourierFT(Delta):
    """The node. base: kernel [in, out]; spectrum: [n]; rows, columns: int32 [n], no pair twice; scale: []; dropout: rate [] or None; all
    with a leading L outside the scanned body."""

    base: Any
    spectrum: jax.Array
    rows: jax.Array
    columns: jax.Array
    scale: jax.Array
    dropout: jax.Array | None
    name: str

    trainable = ("spectrum",)

    def delta(self):
        return jnp.fft.ifft2(scatter(self.spectrum, self.rows, self.columns, self.shape)).real * self.scale[..., None, None]


@dataclasses.dataclass(frozen=True)
class fourierft:  # noqa: N801 (configs read `fourierft(frequencies=1000)`)
    """FourierFT on chosen linear kernels.

    Attributes:
        frequencies: n, coefficients that are trained.
        scale: of the update. The inverse transform divides by in · out.
        seed: of the choice; kernels of one shape have the same.
        init: of the coefficients: "zeros", or "normal" for N(0, 1), which changes the model before it is trained.
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        dropout: rate on the input, at training time.
        frequency_pattern: exceptions to `frequencies` by target.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    frequencies: int = 1000
    scale: float = 150
    seed: int = 777
    init: str = "zeros"
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    frequency_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        for count in (self.frequencies, *self.frequency_pattern.values()):
            require_positive("FourierFT", frequencies=count)
        require_known("FourierFT", "init", self.init, INITS)
        require_rate("FourierFT", self.dropout)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a FourierFT node around every target.

        Raises:
            ValueError: a target, a pattern or a layer that names nothing; numbers that differ within a stack; a kernel with fewer entries
                than there are frequencies.
        """
        return wrap(params, key, self.targets, self.layers, self.name, self._node, frequency_pattern=self.frequency_pattern)

    def _node(self, target: Target, draw: Draw) -> FourierFT:
        count = at_once(self.frequency_pattern, target, self.frequencies, "FourierFT frequencies")
        rows, width = target.value.shape[-2:]
        if count > rows * width:
            raise ValueError(f"FourierFT frequencies {count:,} are more than the {rows * width:,} entries of {target.path}")
        spectrum = draw.full(0.0, count) if self.init == "zeros" else draw("spectrum", lambda key: jax.random.normal(key, (count,)))
        columns, rows = np.divmod(shuffled(rows * width, count, self.seed), rows)  # counted along HF's [out, in]
        rows, columns = (draw("rows", lambda _, value=value: jnp.asarray(value, jnp.int32)) for value in (rows, columns))
        return FourierFT(target.value, spectrum, rows, columns, draw.full(self.scale), draw.rate(self.dropout), self.name)


def shuffled(size: int, first: int, seed: int) -> np.ndarray:
    """The first numbers of 0 to size - 1 in random order, int64 [first]: each place is swapped with one that is not yet settled, chosen by
    a word of the Mersenne Twister modulo how many there are. Below 2**32 / 20 numbers these are `torch.randperm`'s on the CPU from a
    generator of this seed; torch draws more numbers otherwise, and here two words make a choice."""
    words, wide = np.random.RandomState(seed), size >= 2**32 // 20
    drawn = words.randint(0, 2**32, first * (1 + wide), dtype=np.uint32).astype(np.uint64)
    drawn = (drawn[0::2] << np.uint64(32)) | drawn[1::2] if wide else drawn
    moved: dict[int, int] = {}  # what stands where, where that is not the place's own number
    found = []
    for place in range(first):
        other = place + int(drawn[place]) % (size - place)
        found.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return np.asarray(found)
