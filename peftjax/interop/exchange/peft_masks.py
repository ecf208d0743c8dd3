"""Ranks that AdaLoRA pruned, which HF PEFT leaves out of the file: adapter_config.json's rank_pattern says by module which are there.

    rank_pattern    {"model.layers.0.self_attn.q_proj.lora_E": [true, false, true, false], ...}
    in the file     lora_A [2, in], lora_E [2, 1], lora_B [out, 2]
    here            a [4, in], e [4], b [4, out], with zeros in the rows that are not there

All ranks of a module may be gone. Where none is, of any module, rank_pattern is null.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from peftjax.interop.exchange.peft_table import PeftMethod
from peftjax.interop.exchange.tensors import Tensor


def mask_of(method: PeftMethod, config: Mapping[str, Any], name: str) -> list[bool] | None:
    """Which ranks of a module of theirs are in the file; None where that is all of them."""
    return (config.get("rank_pattern") or {}).get(f"{name}.{method.masked.suffix}") if method.masked else None


def unknown(method: PeftMethod, config: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Entries of rank_pattern for modules that hold no tensors, one complaint each. `names`: of the modules that do."""
    known = {f"{name}.{method.masked.suffix}" for name in names} if method.masked else set()
    return [f"missing   {entry}, of which rank_pattern says which ranks are there"
            for entry in (config.get("rank_pattern") or {}) if method.masked and entry not in known]


def opened(row: Tensor, array: np.ndarray, mask: Sequence[bool] | None) -> np.ndarray | None:
    """Their tensor with zeros in the place of the ranks that were left out; None where it has others than the mask says."""
    axis = row.axes.index("R")
    if mask is None:
        return array
    if array.ndim != len(row.axes) or array.shape[axis] != sum(mask):
        return None
    whole = np.zeros((*array.shape[:axis], len(mask), *array.shape[axis + 1:]), array.dtype)
    whole[(slice(None),) * axis + (np.asarray(mask, bool),)] = array
    return whole


def closed(axes: Sequence[str], array: np.ndarray, mask: Sequence[bool] | None) -> np.ndarray:
    """Their tensor without the ranks that the mask leaves out."""
    return array if mask is None else np.compress(mask, array, axis=tuple(axes).index("R"))
