"""An adapter as formats hold it that know LoRA and not all of its relatives: `peftjax.peft.plain` of its pieces and of its methods.

    before  methods  lora(rank=8, init="pissa")     pieces  ShiftedLoRA(a, b, start_a, start_b)      AdaLoRA(a, e, b)
    after            lora(rank=16)                          LoRA([a; start_a], [b; -start_b])        LoRA(a, e b)

What another format then holds is the same function on the same base, and no longer how it is trained.
"""

import dataclasses

import numpy as np

from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.peft.lora import LoRA
from peftjax.peft.plain import RELATIVES, plain, plain_method


def in_plain_form(adapter: Adapter, but: tuple[str, ...] = ()) -> Adapter:
    """The adapter with plain LoRAs in the place of their relatives; itself where it has none.

    Args:
        but: classes of nodes that the format has a place of its own for.
    """
    kinds = {kind.__name__: kind for kind in RELATIVES if kind.__name__ not in but}
    there = {piece.kind for piece in adapter.pieces.values()} & set(kinds)
    if not there:
        return adapter
    pieces = {path: _plain_piece(kinds[piece.kind], piece) if piece.kind in kinds else piece for path, piece in adapter.pieces.items()}
    return dataclasses.replace(adapter, pieces=pieces, methods=tuple(plain_method(method) for method in adapter.methods))


def _plain_piece(kind: type, piece: Piece) -> Piece:
    fields = dict.fromkeys(field.name for field in dataclasses.fields(kind))
    node = plain(kind(**fields | dict(piece.arrays)))
    arrays = {field: getattr(node, field) for field in LoRA.array_fields if getattr(node, field) is not None}
    return Piece("LoRA", {field: np.asarray(array) for field, array in arrays.items()})
