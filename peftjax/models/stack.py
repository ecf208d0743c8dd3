"""A stack of layers as scanned segments, for every architecture: what is looped over, what is recomputed.

    spans = segment_spans(12, (4, 8))                              == ((0, 4), (4, 12))
    scanned(Block, config, 8, in_axes=(nn.broadcast, 0))           Block's parameters get a leading layer axis of 8

Nothing is restacked when the model is applied: each layer reads its slice of the parameters as they are.
"""

from typing import Any

import jax
from flax import linen as nn

from peftjax.models.attention_blocks import KEPT
from peftjax.nn.kernels import PRODUCT
from peftjax.nn.shared import fill

REMAT = ("none", "dots", "block")


def segment_spans(layers: int, segments: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each scanned segment; () is one segment of all layers.

    Raises:
        ValueError: lengths that do not add up.
    """
    segments = tuple(segments) or (layers,)
    if sum(segments) != layers or min(segments) < 1:
        raise ValueError(f"segments {segments} do not add up to {layers} layers, one or more each")
    ends = [sum(segments[: i + 1]) for i in range(len(segments))]
    return tuple((stop - n, stop) for stop, n in zip(ends, segments, strict=True))


def scanned(
    block: type[nn.Module], config: Any, length: int, *, in_axes: Any, remat: str = "none", unroll: bool = False, shared: Any = None
) -> nn.Module:
    """`length` layers of `block(config, remat)`, one after another.

    Args:
        in_axes: for each argument of the block behind the value that is passed on, `nn.broadcast` or the axis of its layers.
        remat: one of REMAT, see `peftjax.models.decoder.Decoder`.
        unroll: write the layers out instead of looping.
        shared: what the layers share, where the tree holds such values (`peftjax.nn.shared`).

    Raises:
        ValueError: an unknown `remat`.
    """
    if remat not in REMAT:
        raise ValueError(f"remat is {remat!r}; it may be {', '.join(REMAT)}")
    if shared is not None:
        block = nn.map_variables(block, "params", trans_in_fn=lambda variables: fill(variables, shared))
    if remat in ("dots", "block"):
        policy = jax.checkpoint_policies.save_only_these_names(PRODUCT, KEPT) if remat == "dots" else None
        # Within a scan nothing can be merged with the recomputation, so that it needs no protection (prevent_cse).
        block = nn.remat(block, prevent_cse=False, policy=policy)
    stack = nn.scan(
        block, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, in_axes=in_axes, length=length,
        unroll=length if unroll else 1,
    )
    return stack(config, remat)
