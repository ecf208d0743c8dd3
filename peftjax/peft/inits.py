"""Where the factors of a LoRA start, when that depends on the weight or on data.

| init | a, b of one weight W [in, out] | from |
|---|---|---|
| pissa | s aᵀb = the R largest singular parts of W, values shared out evenly | 2404.02948 (2024) |
| pissa_niter_N | the same by N rounds of a randomised SVD | |
| pissa_random | the values of pissa along random orthonormal directions: a control, which takes no part of W | |
| milora | s aᵀb = the R smallest singular parts of W, values shared out evenly | 2406.09044 (2024) |
| olora | Wᵀ = Q T: b = R columns of Q, a = R rows of T | 2406.01775 (2024) |
| corda_ipm, corda_kpm | C W = L S Rᵀ, C = E[xᵀx]: s aᵀb = the largest (ipm) or smallest (kpm) of C⁻¹ (L S Rᵀ) | 2406.05223 (2024) |
| lora_ga_DIRECTION_SCALE | a and b of different singular directions of the gradient of W | 2407.05000 (2024) |
| loftq | s aᵀb = the nearest of its rank to W - Q, on a weight that is held as Q | 2310.08659 (2023) |
| eva_rho_X | a = the R largest principal directions of the inputs, b = 0 | 2410.07170 (2024) |

All but EVA and LoftQ start with s aᵀb ≠ 0, which is subtracted again (`peftjax.peft.shifted`). CorDA, LoRA-GA and EVA need statistics
(`peftjax.peft.probe`), LoftQ the dense weights; a method that asks for them is attached with ordinary values, which
`peftjax.peft.initialise` replaces. LoftQ here is one round, which leaves the base as it is held; more rounds hold it otherwise
(`peftjax.peft.initialise.loftq`).

CorDA's product is that of HF PEFT; how it is shared out between a and b depends on the size of C, which PEFT sums over the tokens of a
sequence divided by their largest value, so that b is larger there and a smaller.

MiLoRA learns from what the weight uses least: the smaller its last singular values, the nearer to zero both factors start, and on a weight
of a rank lower than its shape by R both are zero, from where neither is trained.

LoRA-GA is that of the paper and of its authors' code: both factors of unit directions, no direction in both, times out^¼ / √γ each
("stable", γ = 16), the mean root of W's R largest singular values over s ("weight_svd"), 1 / s ("gd_scale") or 1 ("unit"). HF PEFT 0.21.2
multiplies b by the gradient's singular values besides, so that its start depends on whether a loss is a sum or a mean, and scales b alone.

EVA has no tau: directions are those of all the tokens that were measured, not of a running estimate that has to settle.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import dense
from peftjax.peft.probe import Statistics

GAMMA = 16.0  # of LoRA-GA's stable scale
DIRECTIONS = ("ArB2r", "ArBr", "A2rBr", "random")
SCALES = ("stable", "weight_svd", "gd_scale", "unit")
PATTERNS = {
    "pissa": r"pissa(?:_niter_(?P<rounds>\d+))?",
    "pissa_random": r"pissa_random",
    "milora": r"milora",
    "olora": r"olora",
    "corda": r"corda_(?P<keeps>ipm|kpm)",
    "lora_ga": rf"lora_ga(?:_(?P<direction>{'|'.join(DIRECTIONS)}))?(?:_(?P<scale>{'|'.join(SCALES)}))?",
    "eva": r"eva(?:_rho_(?P<rho>\d+(?:\.\d+)?))?",
    "loftq": r"loftq",
}
NEEDS = {
    "pissa": None, "pissa_random": None, "milora": None, "olora": None, "corda": "inputs", "lora_ga": "gradient", "eva": "inputs",
    "loftq": "dense",
}  # fmt: skip
SPELLED = (
    "pissa", "pissa_niter_N", "pissa_random", "milora", "olora", "corda_ipm", "corda_kpm", "lora_ga", "lora_ga_DIRECTION_SCALE", "eva",
    "eva_rho_X", "loftq",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Init:
    """An init taken apart: its kind, and the options that its name carries, as text."""

    kind: str
    options: tuple[tuple[str, str], ...]

    @property
    def needs(self) -> str | None:
        """What it is made of: one of `peftjax.peft.probe.KINDS`, or "dense", the weights before quantising; None where the weight is
        enough."""
        return NEEDS[self.kind]

    @property
    def shifts(self) -> bool:
        """Whether it starts off zero, so that the start has to be subtracted."""
        return self.kind not in ("eva", "loftq")

    def option(self, name: str, default: Any) -> Any:
        """An option in the type of its default."""
        return type(default)(dict(self.options).get(name, default))

    def rows(self, rank: int) -> int:
        """How many rows the factors have room for, EVA sharing ranks out anew up to rho times the rank."""
        return round(rank * max(1.0, self.option("rho", 2.0))) if self.kind == "eva" else rank


def parse(name: str) -> Init | None:
    """The init of a name; None where it is none of this file."""
    for kind, pattern in PATTERNS.items():
        match = re.fullmatch(pattern, name)
        if match:
            return Init(kind, tuple((key, value) for key, value in match.groupdict().items() if value is not None))
    return None


def factors(
    init: Init, weight: jax.Array, scale: jax.Array, rank: int, key: jax.Array, found: Statistics | None = None
) -> tuple[jax.Array, jax.Array]:
    """(a [rank, in], b [rank, out]) float32 of one weight [in, out], by any init but EVA.

    Args:
        scale: s [].
        key: of what is random.
        found: the statistic that the init needs, of this weight.

    Raises:
        ValueError: a weight whose smaller side is less than the directions that are needed.
    """
    needed = 2 * rank if init.kind == "lora_ga" else rank
    if needed > min(weight.shape):
        raise ValueError(f"{init.kind} of rank {rank} takes {needed} directions; a weight of shape {weight.shape} has {min(weight.shape)}")
    weight = weight.astype(jnp.float32)
    with jax.default_matmul_precision("highest"):
        match init.kind:
            case "pissa":
                rounds = init.option("rounds", -1)
                left, values, right = _svd(weight, slice(rank)) if rounds < 0 else _randomised_svd(weight, rank, rounds, key)
                return _even(left, values / scale, right)
            case "pissa_random":
                for_a, for_b = jax.random.split(key)
                values = jnp.linalg.svd(weight, compute_uv=False)[:rank]
                return _even(_orthonormal(for_a, rank, weight.shape[0]), values / scale, _orthonormal(for_b, rank, weight.shape[1]))
            case "milora":
                left, values, right = _svd(weight, slice(-rank, None))
                return _even(left, values / scale, right)
            case "olora":
                q, t = jnp.linalg.qr(weight.T)
                return t[:rank], q[:, :rank].T
            case "corda":
                return _corda(weight, scale, rank, found.mean_square(), init.option("keeps", "ipm"))
            case "lora_ga":
                return _lora_ga(weight, scale, rank, found.gradient, init.option("direction", "ArB2r"), init.option("scale", "stable"), key)
    raise ValueError(f"{init.kind} does not start from one weight alone")


def principal(covariance: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """(directions [rank, in], the share of the variance that each explains [rank]) of one covariance [in, in], largest first."""
    values, vectors = jnp.linalg.eigh(covariance)
    values = jnp.maximum(values[::-1], 0)
    return vectors[:, ::-1].T[:rank], values[:rank] / jnp.maximum(jnp.sum(values), jnp.finfo(jnp.float32).tiny)


def _svd(matrix, part: slice):
    """(left [R, in], values [R], right [R, out]) of this part of the singular values, which descend."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left[:, part].T, values[part], right[part]


def _orthonormal(key, rank: int, width: int):
    """[rank, width] with orthonormal rows, whose span is uniformly distributed."""
    return jnp.linalg.qr(jax.random.normal(key, (width, rank)))[0].T


def _randomised_svd(matrix, rank: int, rounds: int, key):
    """2009.10863's algorithm 5.1, as torch.svd_lowrank: a basis of the range, sharpened by `rounds` products, then a thin SVD."""
    basis = jnp.linalg.qr(matrix @ jax.random.normal(key, (matrix.shape[1], rank)))[0]
    for _ in range(rounds):
        basis = jnp.linalg.qr(matrix @ jnp.linalg.qr(matrix.T @ basis)[0])[0]
    left, values, right = jnp.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left).T, values, right


def _even(left, values, right):
    """Both factors of Σ value left right, [rank, in] and [rank, out], with the root of each value."""
    root = jnp.sqrt(values)[:, None]
    return root * left, root * right


def _corda(weight, scale, rank: int, square, keeps: str):
    """C is damped until its inverse is one: by 1 % of its mean diagonal, doubled as often as need be (as HF PEFT)."""
    size = square.shape[0]
    identity = jnp.eye(size)

    def damped(times):
        return square + times * jnp.mean(jnp.diagonal(square)) * identity

    def wrong(times):
        error = jnp.linalg.norm(damped(times) @ jnp.linalg.inv(damped(times)) - identity)
        return ~(error < 0.05) & (times < 1e6)

    fixed = damped(jax.lax.while_loop(wrong, lambda times: 2 * times, jnp.float32(0.01)))
    left, values, right = _svd(fixed @ weight, slice(rank) if keeps == "ipm" else slice(-rank, None))
    return _even(jnp.linalg.solve(fixed, left.T).T, values / scale, right)


def _lora_ga(weight, scale, rank: int, gradient, direction: str, size: str, key):
    left, _, right = _svd(gradient, slice(2 * rank))
    first, second, mixed = jnp.arange(rank), jnp.arange(rank, 2 * rank), jax.random.permutation(key, 2 * rank)
    of_a, of_b = {
        "ArB2r": (first, second), "A2rBr": (second, first), "ArBr": (2 * first + 1, 2 * first),
        "random": (mixed[:rank], mixed[rank:]),
    }[direction]
    times = {
        "stable": lambda: weight.shape[1] ** 0.25 / GAMMA**0.5, "unit": lambda: 1.0, "gd_scale": lambda: 1 / scale,
        "weight_svd": lambda: jnp.mean(jnp.sqrt(_svd(weight, slice(rank))[1] / scale)),
    }[size]()
    return times * left[of_a], times * right[of_b]


def stacked(init: Init, weight: Any, scale: jax.Array, ranks: Sequence[int], key: jax.Array, layers: range | None, found: Any = None):
    """`factors` of one weight, or of each layer of a stack, with zero in the rows past its own rank; one layer at a time is dense.

    Args:
        weight: [in, out] or [L, in, out], dense or a node.
        key: of the path; that of a layer is folded with its number.
        found: `Statistics` of the same leading axis, or None.
    """

    if layers is None:
        return _of_layers(init, ranks[0], False, (weight, scale, key, found))
    keys = jax.vmap(lambda layer: jax.random.fold_in(key, layer))(jnp.arange(layers.start, layers.stop))
    a, b, top = 0.0, 0.0, max(ranks)
    for rank in sorted(set(ranks)):  # the directions of a layer depend on its own rank
        own = (jnp.asarray(ranks) == rank)[:, None, None]
        room = [(0, 0), (0, top - rank), (0, 0)]
        some_a, some_b = (jnp.pad(value, room) for value in _of_layers(init, rank, True, (weight, scale, keys, found)))
        a, b = jnp.where(own, some_a, a), jnp.where(own, some_b, b)
    return a, b


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _of_layers(init: Init, rank: int, stacked: bool, parts: tuple):
    def one(parts):
        weight, scale, key, found = parts
        return factors(init, dense(weight), scale, rank, key, found)

    return jax.lax.map(one, parts) if stacked else one(parts)
