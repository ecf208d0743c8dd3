"""HF PEFT's methods that stand before the tokens: prompt tuning, P-tuning and prefix tuning, read and written.

| peft_type | entry | prompt_embeddings, the only tensor |
|---|---|---|
| PROMPT_TUNING | Prompt | [P, D], times the scale of the base's embedding |
| P_TUNING | PromptEncoder, PromptLSTM | the same, what the encoder computes: itself it is not stored |
| PREFIX_TUNING | Prefix, PrefixEncoder | [P, L · 2 · G K]: keys and values of each layer, what an encoder computes included |

So a file of P-tuning, or of a projected prefix, is read as what was computed, with a note, and training cannot go on where it stopped;
our own form keeps encoders. PEFT takes a prefix for tokens: their positions start behind it, and a window counts them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.hints import did_you_mean
from peftjax.interop.exchange import peft_table as t
from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.folder import open_tensors
from peftjax.interop.exchange.tensors import read_float32
from peftjax.nn.context import KEYS_VALUES, PROMPT
from peftjax.nn.shared import STORE
from peftjax.peft.prefix import PrefixEncoder, prefix
from peftjax.peft.prompt import PromptEncoder, PromptLSTM, p_tuning, prompt_tuning

PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
KINDS = ("Prompt", "PromptEncoder", "PromptLSTM", "Prefix", "PrefixEncoder")
KEY = "prompt_embeddings"
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
    unknown += ["modules_to_save"] if config.get("modules_to_save") else []
    if unknown:
        raise ValueError(f"{folder / t.CONFIG}: {', '.join(unknown)} is not supported here{did_you_mean(unknown[0], READ)}")
    sources = open_tensors(folder, t.WEIGHTS, t.PICKLE)
    if set(sources) != {KEY}:
        raise ValueError(f"{folder / t.WEIGHTS} holds {', '.join(sorted(sources)) or 'nothing'}; {config['peft_type']} is {KEY} alone")
    array, dtype = read_float32(KEY, sources[KEY], str(folder))
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
        methods = (prompt_tuning(length=length),)
    lineage = {name: config.get(name) for name in ("peft_version", "base_model_name_or_path")}
    return Adapter(methods, pieces, dtype=dtype, lineage={"format": "HF PEFT"} | lineage, notes=tuple(notes))


def context_content(adapter: Adapter, base_config: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors, what adapter_config.json says of them) of an adapter that is nothing but context.

    Raises:
        ValueError: what PEFT has no place for.
    """
    (method, *others) = adapter.methods
    if others or any(piece.kind not in (*KINDS, "SharedValue") for piece in adapter.pieces.values()):
        raise ValueError("HF PEFT has one method a file where that method stands before the tokens; here are "
                         + ", ".join(type(each).__name__ for each in adapter.methods))
    about = {"num_layers": base_config.layers, "num_transformer_submodules": 1, "modules_to_save": None}
    if isinstance(method, prefix):
        array = _prefix(method, adapter, base_config)
        about |= {
            "peft_type": "PREFIX_TUNING", "num_virtual_tokens": method.length, "token_dim": _kv_width(base_config),
            "num_attention_heads": base_config.kv_heads, "prefix_projection": method.hidden is not None,
            "encoder_hidden_size": method.hidden or _kv_width(base_config), "init_weights": None,
        }
        return {KEY: array}, about
    (piece,) = adapter.pieces.values()
    arrays = dict(piece.arrays)
    about |= {
        "num_virtual_tokens": method.length, "token_dim": base_config.width, "num_attention_heads": base_config.heads,
    }
    if isinstance(method, p_tuning):
        entry = PromptEncoder(**arrays, name="") if method.encoder == "mlp" else PromptLSTM(**{"deeper": None} | arrays, name="")
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
    return {KEY: arrays["embedding"] * np.float32(base_config.embedding_scale)}, about


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


def _kv_width(config: Any) -> int:
    return config.kv_heads * config.head_size
