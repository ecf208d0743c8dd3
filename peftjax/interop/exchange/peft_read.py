"""An adapter out of a directory that HF PEFT wrote: adapter_config.json and adapter_model.safetensors.

    adapter = read_peft("my-lora", base.config)

The tensors say what is there, the config how it is scaled; then the config's targets are held against the tensors. Whatever is unread,
missing, misshapen or not supported is an error that names all of it. What their file does not hold, a scale or positions that follow from a
seed, is derived as PEFT derives it and stored as numbers.
"""

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.hints import did_you_mean
from peftjax.interop.exchange import peft_table as t
from peftjax.interop.exchange.adapter import LISTED, Adapter, Piece
from peftjax.interop.exchange.folder import open_tensors
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.exchange.peft_checks import check_config, ensures_tying, target_problems, token_problems
from peftjax.interop.exchange.peft_context import PROMPTS, read_context
from peftjax.interop.exchange.peft_copies import Copies
from peftjax.interop.exchange.peft_found import default, of_biases, of_method, of_saved, of_tokens
from peftjax.interop.exchange.peft_masks import mask_of, opened, unknown
from peftjax.interop.exchange.peft_methods import METHODS
from peftjax.interop.exchange.peft_rules import in_other_words, pattern_value, renamed, saved, under_new_name
from peftjax.interop.exchange.tensors import Tensor, read_array, split_key
from peftjax.interop.json_file import read_json
from peftjax.nn.shared import STORE


def read_peft(folder: str | Path, base_config: Any, base_params: Any = None, base_uri: str = "", other_base: bool = False) -> Adapter:
    """The adapter of a directory, for a base with this config.

    Args:
        base_params: the base's tree, with which copies of base weights in the file are compared; None takes them on trust and notes it.
        base_uri: where the base came from; another name in the file is noted.
        other_base: copies of another base's weights are left out with a note, and are no error.

    Raises:
        FileNotFoundError: no config or no tensors there.
        ValueError: another method, a setting that is not supported, a pickle, a foreign base, or tensors that are missing, extra or
            misshapen.
    """
    folder = Path(folder)
    config = read_json(folder / t.CONFIG)
    if config.get("peft_type") in PROMPTS:
        return read_context(folder, config, base_config)
    config, old_ends = under_new_name(config)
    check_config(config, str(folder / t.CONFIG))
    sources = open_tensors(folder, t.WEIGHTS, t.PICKLE, whole_numbers=True)
    modules = Modules.of(base_config)
    config, ends = in_other_words(config, list(modules.ours), modules.linear)
    reader = _Reader(folder, config, modules, base_params, other_base)
    reader.base_name = base_uri.partition("#")[0].rstrip("/").rpartition("/")[2]
    for key, source in sources.items():
        array = read_array(key, source, str(folder))
        whole = np.issubdtype(array.dtype, np.integer)
        reader.take(renamed(key, ends | old_ends), array.astype(np.int32 if whole else np.float32), array.dtype.name)
    return reader.adapter()


class _Reader:
    """Collects tensors into pieces, then checks them as a whole."""

    def __init__(self, folder: Path, config: Mapping[str, Any], modules: Modules, base_params: Any, other_base: bool):
        self.folder, self.config, self.modules = folder, config, modules
        self.arrays: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)  # by their module and suffix
        self.homeless: list[str] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.copies = Copies(config, modules, base_params, other_base, self.notes, self.problems)
        self.base_name = ""
        self.label_count = 0
        self.dtypes: collections.Counter[str] = collections.Counter()
        self.method = METHODS[config["peft_type"]]
        self.shared: dict[str, np.ndarray] = {}  # by suffix
        self.suffixes = sorted(t.SUFFIXES | self.method.suffixes)
        self._node = self.method.tables[-1].node

    def take(self, key: str, array: np.ndarray, dtype: str) -> None:
        """Files one tensor under its module."""
        if ".original_module." in key:
            self.notes.append(f"{key} is what modules_to_save replaced, is read by nothing and was left out")
            return
        # With bias "all" PEFT writes the bias of a saved module under its wrapper's name too.
        key = key.replace(".modules_to_save.", ".")
        if key.removeprefix("base_model.") in {row.suffix for row in self.method.shared}:
            self.shared[key.removeprefix("base_model.")] = array
            return
        found = split_key(key.removeprefix(t.PREFIX), self.suffixes) if key.startswith(t.PREFIX) else None
        if found is None or found[0] not in self.modules.ours:
            self.homeless.append(key)
            return
        self.dtypes[dtype] += not np.issubdtype(array.dtype, np.integer)
        twin = self.arrays[found[0]].setdefault(found[1], array)
        if not np.array_equal(twin, array):
            self.problems.append(f"other     {key} is there twice, with different values")

    def adapter(self) -> Adapter:
        """The whole; raises with every complaint."""
        pieces: dict[str, Piece] = {}
        found: dict[str, dict[str, Any]] = {}
        saved_modules, biases, tokens = [], [], {}
        duplicates = self.copies.tied(self.arrays)
        for name, entries in self.arrays.items():
            if name in duplicates:
                continue
            entries, paths = dict(entries), self.modules.ours[name]
            if t.COPY_OF_BASE in entries:
                self.copies.of_base(name, t.COPY_OF_BASE, entries.pop(t.COPY_OF_BASE))
            if self.method.suffixes & set(entries):
                self._adapted(name, paths, entries, pieces, found)
            if t.TOKENS.tensors[0].suffix in entries:
                tokens[name] = self._tokens(name, paths[0], entries.pop(t.TOKENS.tensors[0].suffix), pieces)
            if t.BIAS_BELOW.suffix in entries:
                biases += self._bias(name, paths, t.BIAS_BELOW, entries.pop(t.BIAS_BELOW.suffix), pieces)
            if self._beside(name, entries):
                self.copies.of_table(name, entries.pop("weight"))
            elif "weight" in entries:
                self._saved(name, paths, entries, pieces)
                saved_modules += paths
            elif "bias" in entries:
                biases += self._bias(name, paths, t.SAVED_BIAS, entries.pop("bias"), pieces)
            self.problems += [f"extra     {t.PREFIX}{name}.{suffix}: nothing here reads it" for suffix in entries]
        self._shared(found, pieces)
        self._refuse(found, saved_modules, tokens)
        self._name_base()
        self.notes += [
            f"{name} {self.config[name]} acts at training time only and is not applied here"
            for name in self.method.at_training if found and self.config.get(name)
        ]
        config, modules = self.config, self.modules
        return Adapter(
            (*of_method(self.method, found, config, modules), *of_saved(saved_modules, self.label_count, config, modules),
             *of_biases(biases, config, modules, str(self.folder)), *of_tokens(tokens)),
            pieces,
            dtype=self.dtypes.most_common(1)[0][0],
            lineage={"format": "HF PEFT", "peft_version": self.config.get("peft_version"),
                     "base_model_name_or_path": self.config.get("base_model_name_or_path")},
            notes=tuple(self.notes),
        )

    def _refuse(self, found: Mapping[str, Any], saved_modules: list[str], tokens: Mapping[str, Any]) -> None:
        """Raises with every complaint."""
        if self.homeless and not self.arrays:
            raise ValueError(
                f"{self.folder} does not fit this base: none of its {len(self.homeless)} tensors has a place; the first is "
                f"{self.homeless[0]}, modules here are {t.PREFIX}{next(iter(self.modules.ours))}, ..."
            )
        if not self.arrays:
            raise ValueError(f"{self.folder}: {t.WEIGHTS} holds no tensors")
        for number, key in enumerate(self.homeless):
            name = (split_key(key.removeprefix(t.PREFIX), self.suffixes) or ("",))[0]
            hint = did_you_mean(name, self.modules.ours) if name and number < 3 else ""  # a search over all names
            self.problems.append(f"extra     {key}: this base has no such place{hint}")
        origin, complained = str(self.folder / t.CONFIG), " ".join(self.problems)
        self.problems += target_problems(self.config, self.modules, list(found), saved_modules, complained, origin, self._node)
        self.problems += token_problems(self.config, self.modules, list(tokens))
        self.problems += unknown(self.method, self.config, list(self.arrays))
        if self.problems:
            more = f"\n  and {len(self.problems) - LISTED} more" if len(self.problems) > LISTED else ""
            raise ValueError(f"{self.folder} does not fit this base:\n  " + "\n  ".join(sorted(self.problems)[:LISTED]) + more)

    def _name_base(self) -> None:
        """The file names its base by a path or an id, which proves nothing, but may be worth a look."""
        theirs = str(self.config.get("base_model_name_or_path") or "").rstrip("/").rpartition("/")[2]
        one, other = sorted((theirs.lower(), self.base_name.lower()), key=len)
        if one and one not in other:  # a GGUF file is often named after the base with something behind it
            self.notes.append(f"it names {theirs} as its base, this is {self.base_name}")

    # ---- one module ------------------------------------------------------------------------------------------------------------

    def _shaped(self, name: str, row: Tensor, array: np.ndarray, sizes: Mapping[str, int]) -> bool:
        wanted = row.shape(sizes)
        fits = len(wanted) == array.ndim and all(w in (None, n) for w, n in zip(wanted, array.shape, strict=True))
        if not fits:
            letters = [f"{axis}={size}" if size is not None else axis for axis, size in zip(row.axes, wanted, strict=True)]
            self.problems.append(f"misshapen {t.PREFIX}{name}.{row.suffix}: {list(array.shape)}, this base wants [{', '.join(letters)}]")
        return fits

    def _sizes(self, name: str) -> dict[str, int]:
        """in and out of their module, the parts of ours together."""
        paths = self.modules.ours[name]
        shapes = [self.modules.sizes(path) for path in paths]
        if self.modules.kind(paths[0]) == "embedding":
            return {"V": shapes[0][0], "D": shapes[0][1]}
        if paths == ["head"] and self._labelled():
            return {"in": shapes[0][0]}  # an adapter's head may have other labels than the base's
        return {"in": shapes[0][0], "out": sum(shape[-1] for shape in shapes)}

    def _labelled(self) -> bool:
        """Whether the base is an encoder, whose head gives labels."""
        return hasattr(self.modules.config, "labels")

    def _adapted(self, name: str, paths: list[str], entries: dict[str, np.ndarray], pieces: dict, found: dict) -> None:
        """The method's own tensors of one module."""
        kind = self.modules.kind(paths[0])
        table = next((table for table in self.method.tables if kind in table.kinds and table.asked(self.config, name)), None)
        if table is None:
            self.problems.append(f"other     {t.PREFIX}{name}: {self.method.peft_type} on its kind of module ({kind}) is not supported")
        elif len(paths) > 1 and not self.method.parts:
            whole = ", ".join(path.rpartition("/")[2] for path in paths)
            self.problems.append(
                f"other     {t.PREFIX}{name}: it is {whole} in one, and {self._node} of the whole is not that of its parts"
            )
        rows = [row for row in table.tensors if row.suffix in entries] if table else []
        absent = [row.suffix for row in table.tensors if row.suffix not in entries and not row.optional] if table else []
        arrays = {suffix: entries.pop(suffix) for suffix in self.method.suffixes & set(entries) if any(r.suffix == suffix for r in rows)}
        copies = {row.suffix: entries.pop(row.suffix) for row in self.method.shared if row.suffix in entries}
        for suffix, array in copies.items():
            if not np.array_equal(array, self.shared.get(suffix)):
                self.problems.append(f"other     {t.PREFIX}{name}.{suffix} is not base_model.{suffix}, of which it is a copy")
        if absent or table is None or (len(paths) > 1 and not self.method.parts):
            self.problems += [f"missing   {t.PREFIX}{name}.{suffix}" for suffix in absent]
            if table is None:
                for suffix in self.method.suffixes & set(entries):
                    entries.pop(suffix)
            return
        mask = mask_of(self.method, self.config, name)
        for row in rows if self.method.masked else ():
            whole = opened(row, arrays[row.suffix], mask)
            if whole is None:
                self.problems.append(
                    f"misshapen {t.PREFIX}{name}.{row.suffix}: {list(arrays[row.suffix].shape)}, and rank_pattern keeps {sum(mask)} ranks"
                )
                return
            arrays[row.suffix] = whole
        sizes = self._sizes(name)
        for row in rows:  # a letter that the base does not give is what the first tensor makes it
            for letter, size in zip(row.axes, arrays[row.suffix].shape, strict=False):
                sizes.setdefault(letter, size) if letter not in ("1", "2", "outs") else None
        if not all([self._shaped(name, row, arrays[row.suffix], sizes) for row in rows]):
            return
        numbers = self._numbers(name, sizes)
        if numbers is None:
            return
        derived = dict(self.method.constant(numbers, self.config, sizes.get("in", 0), sizes.get("out", 0)))
        if self.method.per:
            derived["scale"] = np.float32(numbers["alpha"] / self.method.per(numbers["rank"], self.config))
        for path in paths:
            part = self.modules.theirs[path].part
            own = {row.field: row.ours(arrays[row.suffix], part, sizes.get("out")) for row in rows}
            pieces[self.modules.parameter(path)] = Piece(table.node, own | derived)
            found[path] = numbers

    def _numbers(self, name: str, sizes: Mapping[str, int]) -> dict[str, Any] | None:
        """The numbers of one module by field of ours; None after a complaint."""
        numbers = {}
        for number in self.method.numbers:
            value = pattern_value(self.config.get(number.patterns) if number.patterns else None, name, default(number, self.config))
            own = sizes.get(number.axis, value)
            if own != value and number.strict:
                self.problems.append(f"misshapen {t.PREFIX}{name}: {number.ours} {own}, the config says {value}")
                return None
            numbers[number.ours] = own
        return numbers

    def _shared(self, found: Mapping[str, Any], pieces: dict[str, Piece]) -> None:
        """What all modules share: in the file, or drawn from its seed."""
        method, arrays = self.method, self.shared
        if not found or not method.shared:
            return
        if not arrays and method.draw and self.config.get("save_projection") is False:
            widths = [self._sizes(self.modules.theirs[path].name) for path in found]
            arrays = method.draw(self.config, max(w["in"] for w in widths), max(w["out"] for w in widths))
            self.notes.append("its shared random matrices are not in the file, and were drawn from its seed as PyTorch draws them")
        absent = [row for row in method.shared if row.suffix not in arrays]
        if absent:
            self.problems += [f"missing   base_model.{row.suffix}" for row in absent]
            return
        values = {row.field: row.ours(arrays[row.suffix]) for row in method.shared}
        outside = [path for path in found if not path.startswith("blocks/")]
        for path in outside:  # what stands outside the stack of layers has them itself
            parameter = self.modules.parameter(path)
            own = {field.rpartition("/")[2]: value for field, value in values.items()}
            pieces[parameter] = pieces[parameter]._replace(arrays=dict(pieces[parameter].arrays) | own)
        for field, value in values.items():
            pieces[f"{STORE}/{field}"] = Piece("SharedValue", {"value": value})

    def _tokens(self, name: str, path: str, array: np.ndarray, pieces: dict) -> tuple[int, ...]:
        indices = self.config.get("trainable_token_indices") or []
        if isinstance(indices, Mapping):
            indices = next((ids for module, ids in indices.items() if name == module or name.endswith(f".{module}")), [])
        shape = self.modules.sizes(path)
        row = t.TOKENS.tensors[0]
        if self._shaped(name, row, array, {"N": len(indices), "D": shape[1] if self.modules.kind(path) == "embedding" else shape[0]}):
            pieces[self.modules.parameter(path)] = Piece("TokenRows", {"rows": row.ours(array), "ids": np.asarray(indices, np.int32)})
        return tuple(indices)

    def _bias(self, name: str, paths: list[str], row: Tensor, array: np.ndarray, pieces: dict) -> list[str]:
        if not all(self.modules.has_bias(path) for path in paths):
            self.problems.append(f"extra     {t.PREFIX}{name}.{row.suffix}: this base has no bias there")
        elif self._shaped(name, row, array, {"out": self._sizes(name).get("out")} if self.modules.kind(paths[0]) != "norm" else {}):
            for path in paths:
                pieces[f"{path}/bias"] = Piece("Trained", {"value": row.ours(array, self.modules.theirs[path].part)})
            return paths
        return []

    def _saved(self, name: str, paths: list[str], entries: dict[str, np.ndarray], pieces: dict) -> None:
        row = t.saved_row(self.modules.kind(paths[0]))
        array = entries.pop("weight")
        if self._shaped(name, row, array, self._sizes(name)):
            for path in paths:
                pieces[self.modules.parameter(path)] = Piece("Trained", {"value": row.ours(array, self.modules.theirs[path].part)})
        if paths == ["head"]:
            self.label_count = array.shape[0]
        if any(self.modules.has_bias(path) for path in paths):
            if "bias" in entries:
                self._bias(name, paths, t.SAVED_BIAS, entries.pop("bias"), pieces)
            else:
                self.problems.append(f"missing   {t.PREFIX}{name}.bias")

    def _beside(self, name: str, entries: Mapping[str, np.ndarray]) -> bool:
        """Whether an embedding or head is saved whole without modules_to_save, as save_embedding_layers does."""
        if self.modules.ours[name] not in (["embed"], ["head"]) or "weight" not in entries:
            return False
        return not (saved(self.config.get("modules_to_save"), name) or ensures_tying(self.config, self.modules) or self._labelled())
