"""HF PEFT's methods that stand before the tokens: prompt tuning, P-tuning and prefix tuning, read and written.

| peft_type | entry | prompt_embeddings, the only tensor |
|---|---|---|
| PROMPT_TUNING | Prompt | [P, D], times the scale of the base's embedding |
| P_TUNING | PromptEncoder, PromptLSTM | the same, what the encoder computes: itself it is not stored |
| PREFIX_TUNING | Prefix, PrefixEncoder | [P, L · 2 · G K]: keys and values of each layer, what an encoder computes included |

So a file of P-tuning, or of a projected prefix, is read as what was computed, with a note, and training cannot go on where it stopped;
our own form keeps encoders. PEFT takes a prefix for tokens: their positions start behind it, and a window counts them.

On an encoder (SEQ_CLS) the classifier is saved with them, as base_model.<module>.{weight, bias}, and reads what stands first: behind
virtual tokens that is the first of them, reads="prompt", where the code of P-tuning v2 (2110.07602) reads the text's own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.hints import did_you_mean
from peftjax.interop.exchange import peft_table as t
from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.folder import open_tensors
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.exchange.tensors import read_float32
from peftjax.nn.context import KEYS_VALUES, PROMPT
from peftjax.nn.shared import STORE
from peftjax.peft.classifier import classifier
from peftjax.peft.prefix import PrefixEncoder, prefix
from peftjax.peft.prompt import PromptEncoder, PromptLSTM, p_tuning, prompt_tuning

PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
KINDS = ("Prompt", "PromptEncoder", "PromptLSTM", "Prefix", "PrefixEncoder")
KEY = "prompt_embeddings"
HEADS = ("classifier", "score")  # what PEFT saves beside them for classification, where a base has it
READ = {
    "num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim", "num_transformer_submodules", "prompt_tuning_init",
    "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "encoder_reparameterization_type", "encoder_hidden_size",
    "encoder_num_layers", "encoder_dropout", "prefix_projection", *t.READ,
}


def read_context(folder: Path, config: Mapping[str, Any], base_config: Any) -> Adapter:
    """The adapter of a directory whose config is read already.

    Raises:
        ValueError: a setting that is not known, tensors that are missing, extra or misshapen.
    """
    unknown = [name for name, value in config.items() if name not in READ and value not in (None, False, {}, [], "")]
    labelled = hasattr(base_config, "labels")
    unknown += ["modules_to_save"] if set(config.get("modules_to_save") or ()) - set(HEADS if labelled else ()) else []
    if unknown:
        raise ValueError(f"{folder / t.CONFIG}: {', '.join(unknown)} is not supported here{did_you_mean(unknown[0], READ)}")
    if labelled and config.get("task_type") != "SEQ_CLS":
        raise ValueError(f"{folder / t.CONFIG}: task_type is {config.get('task_type')!r}; what is read on an encoder is classification, "
                         "SEQ_CLS")
    sources = open_tensors(folder, t.WEIGHTS, t.PICKLE)
    arrays = {name: read_float32(name, source, str(folder)) for name, source in sources.items()}
    array, dtype = arrays.pop(KEY, (None, ""))
    if array is None or arrays and not labelled:
        raise ValueError(f"{folder / t.WEIGHTS} holds {', '.join(sorted(sources)) or 'nothing'}; {config['peft_type']} is {KEY} alone")
    head, head_pieces = _head(folder, {name: value for name, (value, _) in arrays.items()}, base_config)
    length, kind = int(config["num_virtual_tokens"]), config["peft_type"]
    width = base_config.layers * 2 * _kv_width(base_config) if kind == "PREFIX_TUNING" else base_config.width
    if array.shape != (length, width):
        raise ValueError(f"{folder} does not fit this base:\n  misshapen {KEY}: {list(array.shape)}, this base wants [{length}, {width}]")
    notes = []
    if kind == "P_TUNING" or config.get("prefix_projection"):
        notes.append(f"{kind}'s encoder is not in the file: what it computed is read, and is trained as it is")
    if kind == "PREFIX_TUNING":
        parts = array.reshape(length, base_config.layers, 2, -1)
        pieces = {
            f"blocks/{layer}/attn/{KEYS_VALUES}": Piece(
                "Prefix", {name: np.ascontiguousarray(parts[:, layer, at]) for at, name in enumerate("kv")}
            )
            for layer in range(base_config.layers)
        }
        methods = (prefix(length=length, offset=True, slides=True),)
    else:
        pieces = {PROMPT: Piece("Prompt", {"embedding": array / np.float32(base_config.embedding_scale)})}
        methods = (prompt_tuning(length=length, reads="prompt" if labelled else "text"),)
    lineage = {name: config.get(name) for name in ("peft_version", "base_model_name_or_path")}
    return Adapter((*methods, *head), pieces | head_pieces, dtype=dtype, lineage={"format": "HF PEFT"} | lineage, notes=tuple(notes))


def context_content(adapter: Adapter, base_config: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors, what adapter_config.json says of them) of an adapter that is nothing but context.

    Raises:
        ValueError: what PEFT has no place for.
    """
    heads = [each for each in adapter.methods if isinstance(each, classifier)]
    (method, *others) = [each for each in adapter.methods if each not in heads]
    pieces = {path: piece for path, piece in adapter.pieces.items() if path.partition("/")[0] not in ("head", "pool")}
    if others or any(piece.kind not in (*KINDS, "SharedValue") for piece in pieces.values()):
        raise ValueError("HF PEFT has one method a file where that method stands before the tokens; here are "
                         + ", ".join(type(each).__name__ for each in adapter.methods))
    about = {"num_layers": base_config.layers, "num_transformer_submodules": 1, "modules_to_save": None}
    labelled = hasattr(base_config, "labels")
    if labelled and not isinstance(method, prefix) and (method.reads != "prompt" or not method.offset):
        raise ValueError(f"HF PEFT has no place for virtual tokens with offset={method.offset}, reads={method.reads!r}: there they join "
                         "before the embedding's norm, and the classifier reads the first of them, offset=True and reads='prompt'")
    head = _head_tensors(adapter, base_config) if labelled else {}
    about |= {"modules_to_save": list(HEADS)} if labelled else {}
    if isinstance(method, prefix):
        array = _prefix(method, adapter, base_config)
        about |= {
            "peft_type": "PREFIX_TUNING", "num_virtual_tokens": method.length, "token_dim": _kv_width(base_config),
            "num_attention_heads": base_config.kv_heads, "prefix_projection": method.hidden is not None,
            "encoder_hidden_size": method.hidden or _kv_width(base_config), "init_weights": None,
        }
        return {KEY: array, **head}, about
    (piece,) = pieces.values()
    arrays = dict(piece.arrays)
    about |= {
        "num_virtual_tokens": method.length, "token_dim": base_config.width, "num_attention_heads": base_config.heads,
    }
    if isinstance(method, p_tuning):
        said = {"offset": True, "reads": "text", "name": ""}
        entry = PromptEncoder(**arrays, **said) if method.encoder == "mlp" else PromptLSTM(**{"deeper": None} | arrays, **said)
        arrays["embedding"] = np.asarray(entry.folded().embedding)
        about |= {
            "peft_type": "P_TUNING", "encoder_reparameterization_type": method.encoder.upper(), "encoder_hidden_size": method.hidden,
            "encoder_num_layers": method.depth, "encoder_dropout": 0.0,
        }
    else:
        about |= {
            "peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None, "tokenizer_kwargs": None,
            "tokenizer_name_or_path": None,
        }
    return {KEY: arrays["embedding"] * np.float32(base_config.embedding_scale), **head}, about


def is_context(adapter: Adapter) -> bool:
    """Whether an adapter has virtual tokens, or keys and values before the sequence."""
    return any(piece.kind in KINDS for piece in adapter.pieces.values())


def _prefix(method: prefix, adapter: Adapter, base_config: Any) -> np.ndarray:
    """Keys and values as PEFT's one tensor [P, L · 2 · G K]."""
    wrong = [what for what, bad in {
        "offset=False": not method.offset, "gates": method.gates, "on some layers": method.layers is not None,
        "slides=False on a base with a window": base_config.window is not None and not method.slides,
    }.items() if bad]  # fmt: skip
    if wrong:
        raise ValueError(f"HF PEFT has no place for a prefix with {', '.join(wrong)}")
    both = []
    for layer in range(base_config.layers):
        piece = adapter.pieces[f"blocks/{layer}/attn/{KEYS_VALUES}"]
        arrays = dict(piece.arrays)
        if piece.kind == "PrefixEncoder":
            held = {field: adapter.pieces[f"{STORE}/prefix/{field}"].arrays["value"] for field in ("embedding", "down", "down_bias")}
            entry = PrefixEncoder(
                **arrays, **held, gate=None, gate_bias=None, dropout=None, activation=method.activation, offset=True, slides=True,
                gating=method.gating, size=method.length, name="",
            )  # fmt: skip
            flat = entry.folded()
            arrays = {"k": np.asarray(flat.k), "v": np.asarray(flat.v)}
        both.append(np.stack([arrays["k"], arrays["v"]], axis=1))
    return np.stack(both, axis=1).reshape(method.length, -1)


def _head(folder: Path, arrays: Mapping[str, np.ndarray], base_config: Any) -> tuple[tuple[classifier, ...], dict[str, Piece]]:
    """The classifier beside them, as (methods, pieces); ((), {}) on a decoder.

    Raises:
        ValueError: tensors that are no classifier of this base, or none: PEFT does not load such a file.
    """
    if not hasattr(base_config, "labels"):
        return (), {}
    modules = Modules.of(base_config)
    places = {f"base_model.{modules.theirs[ours].name}": ours for ours in ("pool", "head") if ours in modules.theirs}
    held = {places.get(name.rpartition(".")[0]) for name in arrays} | {"head"}
    wanted = {f"{name}.{leaf}" for name, ours in places.items() if ours in held for leaf in ("weight", "bias")}
    problems = [f"missing   {name}" for name in wanted - set(arrays)]
    problems += [f"extra     {name}: this base has no such place" for name in set(arrays) - wanted]
    pieces = {}
    for name in wanted & set(arrays):
        module, _, leaf = name.rpartition(".")
        ours, array = places[module], arrays[name]
        inside = modules.sizes(ours)[0]
        if array.shape[1:] != ((inside,) if leaf == "weight" else ()) or (ours == "pool" and array.shape[0] != inside):
            wide = f"{inside if ours == 'pool' else 'labels'}" + (f", {inside}" if leaf == "weight" else "")
            problems.append(f"misshapen {name}: {list(array.shape)}, this base wants [{wide}]")
        pieces[f"{ours}/{'kernel' if leaf == 'weight' else 'bias'}"] = Piece("Trained", {"value": np.ascontiguousarray(array.T)})
    if problems:
        raise ValueError(f"{folder} does not fit this base:\n  " + "\n  ".join(sorted(problems)))
    count, known = pieces["head/bias"].arrays["value"].shape[0], base_config.labels
    return (classifier(labels=known if len(known) == count else count, hidden="pool/kernel" in pieces),), pieces


def _head_tensors(adapter: Adapter, base_config: Any) -> dict[str, np.ndarray]:
    """The classifier's tensors by PEFT's keys.

    Raises:
        ValueError: none is trained, without which PEFT does not load the file, or one of more than PEFT has a place for.
    """
    modules, tensors = Modules.of(base_config), {}
    for path, piece in adapter.pieces.items():
        ours, _, leaf = path.partition("/")
        if ours in ("head", "pool"):
            name = modules.theirs[ours].name
            if not name.startswith(HEADS):
                raise ValueError(f"beside virtual tokens and prefixes HF PEFT saves {' and '.join(HEADS)}, and {name} is neither; attach "
                                 "classifier(hidden=False)")
            tensors[f"base_model.{name}.{'weight' if leaf == 'kernel' else 'bias'}"] = np.ascontiguousarray(piece.arrays["value"].T)
    if not tensors:
        raise ValueError("HF PEFT loads virtual tokens and prefixes of encoders only with the classifier beside them; attach classifier()")
    return tensors


def _kv_width(config: Any) -> int:
    return config.kv_heads * config.head_size
