"""Which weights of a base are held quantised, and how: rules as data, and the readers that hold to them.

    load_base(uri, quantise="nf4")                                      every linear kernel of the blocks; embedding and head stay dense
    load_base(uri, quantise={"blocks/.*": "nf4", "embed": "int8"})      by module, the first rule that names it counts
    load_base(uri, quantise="as stored")                                what a GGUF file keeps as Q4_0, Q4_1 or Q8_0, bit for bit

| form | node | bits a weight |
|---|---|---|
| "nf4" | NF4, block 64, double quantisation | 4.13 |
| "int4" | Affine4, block 32, scale and minimum | 5 |
| "int8" | Int8, one scale a channel | 8 |
| "fp8" | Float8, one scale a channel | 8 |
| "as stored" | Affine4 of Q4_0 (4.5 bits) and Q4_1 (5), Int8 of Q8_0 (8.5); a kernel of any other type stays dense | |
| "dense" | none: an exception from a later rule | |

A block size follows a colon ("nf4:128"), and a `Scheme` says everything. Alone, a form means all linear kernels of the blocks, and "as
stored" every weight. On the command line rules are joined by commas: "embed=int8,all-linear=nf4". A target is a regular expression over
the logical path of a module or one of the field's names, as in `peftjax.peft.select`.

Weights are read, quantised and dropped one tensor at a time, so that the dense model is never whole in memory.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.hints import did_you_mean
from peftjax.interop.families import Family
from peftjax.interop.gguf_blocks import BLOCK, KINDS, take_apart
from peftjax.interop.weights import Reader, Source, Tensors, aligned_empty, tensors_of
from peftjax.nn.quant import Affine4, Int8, Quantised, Scheme, quantise
from peftjax.peft.select import KERNELS, matches, module_of, unmatched

AS_STORED, DENSE = "as stored", "dense"
FORMS = {"nf4": Scheme("nf4"), "int4": Scheme("affine4"), "int8": Scheme("int8"), "fp8": Scheme("float8")}
Form = Scheme | str  # a string is AS_STORED or DENSE
Rules = tuple[tuple[str, Form], ...]
_AT_ONCE = 1 << 19  # weights taken apart at a time


def as_rules(rules: Any) -> Rules:
    """What a person wrote -> pairs of a target and a form, () for a dense base.

    Args:
        rules: None, a form, a text of rules, a mapping from target to form, or pairs of them; a form is a word of the table above, a
            `Scheme`, or a mapping of its fields.

    Raises:
        ValueError: no such form; names the nearest.
    """
    if rules is None or rules == "":
        return ()
    if isinstance(rules, Scheme) or (isinstance(rules, str) and "=" not in rules):
        form = _form(rules)
        return ((".*" if form == AS_STORED else "all-linear", form),)
    if isinstance(rules, str):
        rules = [tuple(part.strip() for part in rule.rpartition("=")[::2]) for rule in rules.split(",")]
    pairs = rules.items() if isinstance(rules, Mapping) else rules
    return tuple((target, _form(form)) for target, form in pairs)


def as_data(rules: Rules) -> list[list[Any]] | None:
    """Rules as plain data, which `as_rules` reads again; None for a dense base."""
    words = {scheme: word for word, scheme in FORMS.items()}
    plain = [[target, words.get(form) or dataclasses.asdict(form) if isinstance(form, Scheme) else form] for target, form in rules]
    return plain or None


def describe(data: Any) -> str:
    """Rules, in any spelling, in a few words: `dense`, `embed int8, blocks/.* nf4`."""
    parts = []
    for target, form in as_data(as_rules(data)) or ():
        parts.append(f"{target} {form if isinstance(form, str) else ' '.join(f'{k}={v}' for k, v in form.items())}")
    return ", ".join(parts) or "dense"


def _form(form: Any) -> Form:
    if isinstance(form, Scheme):
        return form
    if isinstance(form, Mapping):
        return Scheme(**form)
    if not isinstance(form, str):
        raise ValueError(f"a quantised form is a word, a Scheme or its fields; this is {form!r}")
    if form in (AS_STORED, DENSE):
        return form
    word, _, block = form.partition(":")
    if word not in FORMS or (block and not block.isdigit()):
        known = (*FORMS, AS_STORED, DENSE)
        raise ValueError(f"no quantised form is called {form!r}{did_you_mean(word, known)}; forms are {', '.join(known)}")
    return dataclasses.replace(FORMS[word], block=int(block)) if block else FORMS[word]


def readers(rules: Rules, config: Any, family: Family, form: str, sources: Mapping[str, Source], origin: str,
            dtype: Any = np.float32) -> dict[str, Reader]:
    """Reader of each parameter that these rules hold quantised, for `weights.leaves`.

    Args:
        form: "hf" or "gguf".
        sources: that have passed `weights.check`.
        origin: file or folder, for errors.
        dtype: what the nodes say they are of, and merge into.

    Raises:
        ValueError: a target that names nothing, a kernel that the blocks do not divide, "as stored" where nothing is stored quantised.
    """
    kernels = {weight.path: weight for weight in family.present(config) if weight.path.rpartition("/")[2] in KERNELS}
    modules = sorted(module_of(path) for path in kernels)
    for target, _ in rules:
        _require_names(target, modules)
    found: dict[str, Reader] = {}
    for path, weight in kernels.items():
        asked = next((f for target, f in rules if matches(target, module_of(path))), DENSE)
        if isinstance(asked, Scheme):
            _require_fits(asked, path, weight.sizes(config))
            found[path] = _quantising(asked, jnp.dtype(dtype))
        elif asked == AS_STORED and _node_of(tensors_of(weight, form, config, sources)) is not None:
            found[path] = _as_stored(jnp.dtype(dtype))
    if AS_STORED in dict(rules).values() and not any(s.packed for s in sources.values()):
        raise ValueError(f"{origin} holds no weight as {', '.join(KINDS)}, so that nothing can be taken over as it is stored; name a form: "
                         f"{', '.join(FORMS)}")
    return found


def _require_names(target: str, modules: list[str]) -> None:
    try:
        if not any(matches(target, module) for module in modules):
            raise ValueError(f"quantise: {unmatched(target, modules)}")
    except re.error as error:
        raise ValueError(f"quantise: target {target!r} is no regular expression: {error}") from error


def _require_fits(scheme: Scheme, path: str, sizes: tuple[int, ...]) -> None:
    """Raises what quantising would raise, with the path, before anything is read."""
    weight = jax.ShapeDtypeStruct(sizes, jnp.float32)
    try:
        jax.eval_shape(lambda x: quantise(x, scheme, rows=is_embedding(path)), weight)
    except ValueError as error:
        raise ValueError(f"quantise: {path}: {error}") from error


def is_embedding(path: str) -> bool:
    """Whether rows are looked up in the parameter at this path."""
    return path.rpartition("/")[2] == "embedding"


def _quantising(scheme: Scheme, dtype: Any) -> Reader:
    """Reads dense tensors and quantises each by itself."""

    def read(tensors: Tensors, pool: Executor) -> Quantised:
        def layer(source: Source) -> Quantised:
            stored = tensors.stored
            values = source.read(slice(tensors.rows.start, tensors.rows.stop) if isinstance(tensors.rows, range) else tensors.rows)
            values = np.asarray(values[..., tensors.columns], np.float32) - np.float32(stored.offset)
            return jax.device_get(quantise(values.T if stored.transpose else values, scheme, rows=is_embedding(tensors.path)))

        nodes = _map(pool, layer, tensors.sources)
        return dataclasses.replace(_stacked(nodes, tensors), dtype=dtype)

    return read


def _map(pool: Executor, function: Callable, items: Iterable) -> list:
    jobs = [pool.submit(function, item) for item in items]
    return [job.result() for job in jobs]


def _stacked(nodes: list[Quantised], tensors: Tensors) -> Quantised:
    """One node of all layers; each leaf is given up as it is copied into its stack."""
    if not tensors.stacked:
        return nodes[0]
    flat = [jax.tree.leaves(node) for node in nodes]
    leaves = []
    for i, like in enumerate(flat[0]):
        stack = aligned_empty((len(flat), *like.shape), like.dtype)
        for layer, own in enumerate(flat):
            stack[layer], own[i] = own[i], None
        leaves.append(stack)
    return jax.tree.unflatten(jax.tree.structure(nodes[0]), leaves)


def _node_of(tensors: Tensors) -> type[Quantised] | None:
    """What tensors become as they are stored: None where not all are of one node's types, or the blocks do not run along its axis."""
    kinds = {None if source.packed is None else source.packed.kind for source in tensors.sources}
    along = tensors.stored.transpose or is_embedding(tensors.path)  # rows of the file are columns of a linear kernel
    if not along or tensors.stored.offset or (not tensors.stored.transpose and tensors.columns != slice(0, tensors.shape[-1])):
        return None
    if kinds == {"Q8_0"}:
        return Int8
    return Affine4 if kinds <= {"Q4_0", "Q4_1"} else None


def _as_stored(dtype: Any) -> Reader:
    """Takes blocks over into nodes, [rows of the file, K] -> [K, N]; nothing is decoded."""

    def read(tensors: Tensors, pool: Executor) -> Quantised:
        kinds = {source.packed.kind for source in tensors.sources}
        n, k = len(tensors.rows), tensors.sources[0].shape[-1]
        scale = tensors.leaf((k // BLOCK, n), np.float16)
        codes = tensors.leaf((k, n), np.int8) if "Q8_0" in kinds else tensors.leaf((k // 8, n), np.uint32)
        minimum = tensors.leaf((k // BLOCK, n), np.float16) if "Q4_1" in kinds else None
        jobs = []
        for layer, (target, source) in enumerate(tensors.layers(scale)):
            part = [None if leaf is None else leaf[layer] if tensors.stacked else leaf for leaf in (codes, minimum)]
            for places, rows in tensors.chunks(_AT_ONCE):
                jobs.append(pool.submit(_take_over, source, rows, target[:, places], *(x if x is None else x[:, places] for x in part)))
        for job in jobs:
            job.result()
        embedding = is_embedding(tensors.path)
        return Int8(codes, scale, embedding, dtype) if "Q8_0" in kinds else Affine4(codes, scale, minimum, embedding, dtype)

    return read


def _take_over(source: Source, rows: slice | np.ndarray, scale: np.ndarray, codes: np.ndarray, minimum: np.ndarray | None) -> None:
    blocks = take_apart(source.packed.read(rows), source.packed.kind)
    scale[...] = blocks.scale.T
    codes[...] = (blocks.words if blocks.q is None else blocks.q).T
    if minimum is not None:  # a Q4_0 layer in a stack of Q4_1: scale (q - 8) is scale q - 8 scale
        minimum[...] = (blocks.scale * np.float16(-8) if blocks.minimum is None else blocks.minimum).T
