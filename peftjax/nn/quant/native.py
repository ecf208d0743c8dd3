"""Fused dequantise-matrix-vector products on the CPU, for the few rows of decoding: y = x V without V ever being dense.

    dequantise, then multiply      reads 0.6 bytes a weight, writes 4, reads 4
    here                           reads 0.6 bytes a weight

The loops (`native_loops`) are compiled with LLVM through llvmlite when they are first needed, a tenth of a second each, and called by XLA
(`native_ffi`); no compiler has to be installed. Where they cannot run, `available()` is False, with one warning that says why, and products
take their plain form. `PEFTJAX_NATIVE=0` in the environment asks for the plain form.
"""

import functools
import importlib.util
import math
import os
import platform
import warnings

import jax
import jax.numpy as jnp

from peftjax.nn.quant.affine4 import Affine4
from peftjax.nn.quant.int8 import Int8
from peftjax.nn.quant.nf4 import GROUP, NF4, dequantised

ROWS = 256  # of x; up to here at least as fast as dequantising first, beyond it was not measured
TILES = {"affine4": 32, "nf4": 32, "int8": 64, "bfloat16": 32, "float16": 32}  # kind -> columns done together, a line of the cache or two
SWITCH = "PEFTJAX_NATIVE"


def available() -> bool:
    """Whether the loops run here: the backend is a CPU that they are written for, with llvmlite, and `PEFTJAX_NATIVE` is not 0."""
    if os.environ.get(SWITCH, "1") == "0" or jax.default_backend() != "cpu":
        return False
    reason = _obstacle()
    if reason is not None:
        _warn_once(reason)
    return reason is None


def fits(node) -> bool:
    """Whether there is a loop for this kernel: an Affine4, Int8 or NF4 of one layer, or an array [K, N] of bfloat16 or float16."""
    return _call_of(node) is not None


def matvec(x: jax.Array, node) -> jax.Array:
    """x [M, K] times a kernel stored as [K, N] -> [M, N], in x's dtype, summed in float32.

    Works under jit, scan and vmap; has no derivative of its own (`peftjax.nn.quant.product` gives it one).

    Raises:
        TypeError: there is no loop for this kernel (see `fits`).
    """
    call = _call_of(node)
    if call is None:
        raise TypeError(f"there is no fused product for {type(node).__name__} of shape {node.shape} and dtype {node.dtype}")
    options, leaves = call
    return _batched(tuple(sorted(options.items())), x.astype(jnp.float32), *leaves).astype(x.dtype)


def _call_of(node):
    """Options of the loop for a kernel and its leaves; None where there is none."""
    shape = getattr(node, "stored", node.shape)
    if len(shape) != 2 or shape[0] < 1:
        return None
    k, n = shape
    match node:
        case Affine4():
            leaves = (node.words, node.scale) if node.minimum is None else (node.words, node.scale, node.minimum)
            floats, options = leaves[1:], {"kind": "affine4", "minimum": node.minimum is not None}
        case Int8():
            leaves, floats, options = (node.q, node.scale), (), {"kind": "int8", "scale": str(node.scale.dtype)}
        case NF4():
            leaves, floats, options = _nf4(node)
        case jax.Array() if node.dtype in (jnp.bfloat16, jnp.float16):
            leaves, floats, options = (node,), (), {"kind": str(node.dtype), "step": math.gcd(k, 8)}
        case _:
            return None
    odd = any(leaf.dtype != jnp.float16 for leaf in floats) or options.get("scale", "float32") not in ("float16", "float32")
    options["tile"] = TILES[options["kind"]]
    if odd or n < options["tile"]:
        return None
    if "step" not in options:
        block = k // leaves[1].shape[0]
        options |= {"step": math.gcd(block, 16 if options["kind"] == "int8" else 32), "block": None if block == k else block}
    return options, leaves


def _nf4(node):
    if node.scale is None:
        return (node.words, node.absmax), (), {"kind": "nf4"}
    n = node.absmax.shape[-1]
    if n % 16 == 0:
        return (node.words, node.absmax, node.scale, node.offset), (), {"kind": "nf4", "double": True}
    scale = jnp.take(node.scale, jnp.arange(n) // GROUP, axis=-1)  # registers would straddle groups
    return (node.words, dequantised(node.absmax, scale, node.offset)), (), {"kind": "nf4"}


def _batched(options, x, *leaves):
    """The call, whose batches over x alone are more rows of it; batches over kernels are done one by one."""
    call = jax.custom_batching.custom_vmap(functools.partial(_call, options))

    @call.def_vmap
    def rows(size, batched, x, *leaves):
        if not any(batched[1:]):
            y = _batched(options, x.reshape(-1, x.shape[-1]), *leaves)
            return y.reshape(size, -1, y.shape[-1]), True
        values = (x, *leaves)
        moving = [value for value, moves in zip(values, batched, strict=True) if moves]

        def one(slices):
            slices = iter(slices)
            return _batched(options, *(next(slices) if moves else value for value, moves in zip(values, batched, strict=True)))

        return jax.lax.map(one, moving), True

    return call(x, *leaves)


def _call(options, x, *leaves):
    from peftjax.nn.quant.native_ffi import target
    from peftjax.nn.quant.native_loops import Loop

    result = jax.ShapeDtypeStruct((x.shape[0], leaves[0].shape[-1]), jnp.float32)
    if not x.shape[0]:
        return jnp.zeros(result.shape, result.dtype)
    return jax.ffi.ffi_call(target(Loop(rows=x.shape[0], **dict(options)), len(leaves)), result)(x, *leaves)


@functools.cache
def _obstacle() -> str | None:
    """Why the loops cannot run here; None where they can."""
    if platform.system() not in ("Linux", "Darwin"):
        return f"they are not built for {platform.system()}"
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed"
    from peftjax.nn.quant.native_ffi import VERSION, interface_version
    from peftjax.nn.quant.native_llvm import host

    found = interface_version()
    if found is None or found[0] != VERSION[0] or found[1] < VERSION[1]:
        return f"jaxlib's foreign function interface is {found}, they are written for {VERSION}"
    if host() is None:
        return f"this {platform.machine()} lacks AVX2, FMA or F16C, or is neither x86-64 nor 64-bit ARM"
    return None


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"fused products with quantised kernels are off: {reason}; they are dequantised first, which is slower", stacklevel=3)
