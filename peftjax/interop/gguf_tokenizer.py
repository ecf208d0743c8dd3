"""A tokenizer from the metadata of a GGUF file.

    tokenizer.ggml.model  gpt2 = byte-level BPE by merges;  llama = SentencePiece BPE by scores
    tokenizer.ggml.pre    the *name* of the rules that cut text before BPE, not the rules: they are written out below

The pre-tokenizer matters: "smollm" cuts each digit apart, so "12345" is five tokens, and a model fed anything else sees numbers
that it was not trained on. An unknown name is therefore an error. Sources: llama.cpp's src/llama-vocab.cpp (rules by name),
transformers' convert_slow_tokenizer.py (merges from scores), both read in 2026.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from peftjax.models.tokenizer import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class PreTokenization:
    """How text is cut before byte-level BPE.

    Attributes:
        patterns: regular expressions, applied one after another to the pieces; a match and what lies between are pieces.
        whole: a piece that is in the vocabulary is one token, whatever the merges say.
        nfc: text is brought to Unicode's form C first.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    nfc: bool = False


PRE_TOKENIZATIONS = {
    "gpt-2": PreTokenization((_GPT2,)),
    "smollm": PreTokenization((r"\p{N}", _GPT2)),
    "llama-bpe": PreTokenization((_LLAMA3,), whole=True),
    "qwen2": PreTokenization((_LLAMA3.replace("{1,3}", ""),), nfc=True),
    # What llama.cpp does with models whose own rules it was not told.
    "default": PreTokenization((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}


def tokenizer_from_metadata(metadata: Mapping[str, Any], origin: str) -> Tokenizer:
    """The tokenizer that `metadata` describe, with its special tokens and chat template.

    Raises:
        ValueError: no tokenizer, or a kind of tokenizer or pre-tokenizer that is not known.
    """
    if "tokenizer.ggml.tokens" not in metadata:
        raise ValueError(f"{origin} holds no tokenizer (no key tokenizer.ggml.tokens)")
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata["tokenizer.ggml.tokens"]
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if kind == "gpt2":
        backend = _byte_level(metadata, tokens, types, origin)
    elif kind == "llama":
        backend = _sentence_piece(metadata, tokens, types, origin)
    else:
        supported = "gpt2 (byte-level BPE) and llama (SentencePiece)"
        raise ValueError(f"{origin}: tokenizer kind {kind!r} is not supported; supported are {supported}")
    _add_fixed(backend, tokens, types)
    wrong = [text for i, text in enumerate(tokens) if types[i] == _CONTROL and backend.token_to_id(text) != i]
    if wrong:
        raise ValueError(f"{origin}: control tokens lost their ids: {', '.join(wrong[:10])}")
    special = _special(metadata, tokens, origin)
    if metadata.get("tokenizer.ggml.add_bos_token", kind == "llama") and "bos_token" in special:
        bos = special["bos_token"]
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return Tokenizer(backend, special, metadata.get("tokenizer.chat_template"))


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], origin: str) -> tokenizers.Tokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZATIONS:
        raise ValueError(
            f"{origin}: pre-tokenizer {name!r} is not known, and guessing would tokenise differently from how the model was trained; "
            f"known are {', '.join(PRE_TOKENIZATIONS)}. A directory with the model's tokenizer.json can be loaded instead"
        )
    rules = PRE_TOKENIZATIONS[name]
    # Control tokens at the end stay out of BPE's own vocabulary, so that `whole` cannot find them in text.
    end = len(tokens)
    while rules.whole and end and types[end - 1] == _CONTROL:
        end -= 1
    vocabulary = {text: i for i, text in enumerate(tokens[:end])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rules.whole))
    if rules.nfc:
        backend.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rules.patterns]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_piece(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], origin: str) -> tokenizers.Tokenizer:
    """SentencePiece's BPE joins the pair whose union scores best; as a list of merges that is all splits of all pieces by score."""
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise ValueError(f"{origin}: a SentencePiece tokenizer needs tokenizer.ggml.scores, one for each of its {len(tokens)} tokens")
    ids = {text: i for i, text in enumerate(tokens)}
    joinable = {text for text, kind in zip(tokens, types, strict=True) if kind not in (_CONTROL, _USER_DEFINED)}
    merges = []
    for piece in joinable:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in joinable and right in joinable:
                merges.append((-scores[ids[piece]], ids[left], ids[right], left, right))
    merges.sort()
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=ids, merges=[merge[3:] for merge in merges], unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _add_fixed(backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Tokens that are never cut: control tokens and user-defined ones."""
    pairs = [(text, kind) for text, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    fixed = [tokenizers.AddedToken(text, special=kind == _CONTROL, normalized=False) for text, kind in pairs]
    backend.add_special_tokens([token for token in fixed if token.special])
    backend.add_tokens([token for token in fixed if not token.special])


def _special(metadata: Mapping[str, Any], tokens: Sequence[str], origin: str) -> dict[str, str]:
    special = {}
    for name in ("bos", "eos", "unknown", "padding"):
        i = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if i is not None:
            if not 0 <= i < len(tokens):
                raise ValueError(f"{origin}: {name}_token_id is {i}, outside the vocabulary of {len(tokens)}")
            special[{"unknown": "unk", "padding": "pad"}.get(name, name) + "_token"] = tokens[i]
    return special
