"""A tokenizer from the metadata of a GGUF file.

    tokenizer.ggml.model  gpt2 = byte-level BPE by merges;  llama = SentencePiece BPE by scores
    tokenizer.ggml.pre    the *name* of the rules that cut text before BPE, not the rules: they are written out below

The pre-tokenizer matters: "smollm" cuts each digit apart, so "12345" is five tokens, and a model fed anything else sees numbers
that it was not trained on. An unknown name is therefore an error. Sources: llama.cpp's src/llama-vocab.cpp (rules by name),
transformers' convert_slow_tokenizer.py (merges from scores), both read in 2026; tests/golden/make_tokenizer_golden.py compares with
SentencePiece and transformers.

The file does not say everything. Three things are taken from what llama.cpp and transformers do: a SentencePiece tokenizer with a
space prefix puts it at the start of a text and after each control or user-defined token; Llama 3's rules put bos before a text where
no key says otherwise; Phi-3's control tokens swallow the white space that follows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from peftjax.models.tokenizer import Tokenizer

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_PHI3_KEEPS_SPACE = ("<s>", "<|endoftext|>")  # of Phi-3's control tokens, those that leave the white space after them
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
        bos: a text begins with bos where the file does not say whether it does.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    nfc: bool = False
    bos: bool = False


_LLAMA_BPE = PreTokenization((_LLAMA3,), whole=True, bos=True)
_QWEN2 = PreTokenization((_LLAMA3.replace("{1,3}", ""),), nfc=True)
PRE_TOKENIZATIONS = {
    "gpt-2": PreTokenization((_GPT2,)),
    "smollm": PreTokenization((r"\p{N}", _GPT2)),
    "llama-bpe": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
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
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if kind == "gpt2":
        rules = _rules(metadata, origin)
        backend, bos_first = _byte_level(rules, metadata, tokens, types), rules.bos
    elif kind == "llama":
        backend, bos_first = _sentence_piece(metadata, tokens, types, origin), True
    else:
        supported = "gpt2 (byte-level BPE) and llama (SentencePiece BPE)"
        raise ValueError(
            f"{origin}: tokenizer kind {kind!r} is not supported; supported are {supported}. "
            "A directory with the model's tokenizer.json can be loaded instead"
        )
    _add_fixed(backend, metadata, tokens, types)
    wrong = [text for i, text in enumerate(tokens) if types[i] == _CONTROL and backend.token_to_id(text) != i]
    if wrong:
        raise ValueError(f"{origin}: control tokens lost their ids: {', '.join(wrong[:10])}")
    special = _special(metadata, tokens, origin)
    bos = metadata.get("tokenizer.ggml.add_bos_token", bos_first) and special.get("bos_token")
    eos = metadata.get("tokenizer.ggml.add_eos_token", False) and special.get("eos_token")
    if bos or eos:
        single = [f"{bos}:{{0}}"] * bool(bos) + ["${1}:{0}"] + [f"{eos}:{{0}}"] * bool(eos)
        first, second = ([part.format(i, "AB"[i]) for part in single] for i in (0, 1))
        ends = [(text, backend.token_to_id(text)) for text in (bos, eos) if text]
        backend.post_processor = processors.TemplateProcessing(single=first, pair=first + second, special_tokens=ends)
    return Tokenizer(backend, special, metadata.get("tokenizer.chat_template"))


def _rules(metadata: Mapping[str, Any], origin: str) -> PreTokenization:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZATIONS:
        raise ValueError(
            f"{origin}: pre-tokenizer {name!r} is not known, and guessing would tokenise differently from how the model was trained; "
            f"known are {', '.join(PRE_TOKENIZATIONS)}. A directory with the model's tokenizer.json can be loaded instead"
        )
    return PRE_TOKENIZATIONS[name]


def _byte_level(
    rules: PreTokenization, metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> tokenizers.Tokenizer:
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
    """SentencePiece's BPE joins the pair whose union scores best, the leftmost of equals; as a list of merges that is all splits of all
    pieces by score. Splits of one piece are ordered among themselves, which the leftmost rule never contradicts: equal neighbours join
    from the left, so that of two overlapping places of one piece only the left one comes up."""
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise ValueError(f"{origin}: a SentencePiece tokenizer needs tokenizer.ggml.scores, one for each of its {len(tokens)} tokens")
    ids = {text: i for i, text in enumerate(tokens)}
    joinable = {text for text, kind in zip(tokens, types, strict=True) if kind == _NORMAL}
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


def _add_fixed(backend: tokenizers.Tokenizer, metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> None:
    """Tokens that are never cut: control tokens and user-defined ones.

    Without a space prefix user-defined tokens are found in the text after its spaces became "▁", as SentencePiece does: Gemma's runs of
    spaces. With one they are found before, and the prefix follows them.
    """
    sentence_piece = metadata["tokenizer.ggml.model"] == "llama"
    normalized = sentence_piece and not metadata.get("tokenizer.ggml.add_space_prefix", True)
    phi3 = sentence_piece and metadata.get("general.architecture") == "phi3"
    control, user_defined = [], []
    for text, kind in zip(tokens, types, strict=True):
        if kind == _CONTROL:
            strip = phi3 and text not in _PHI3_KEEPS_SPACE
            control.append(tokenizers.AddedToken(text, special=True, normalized=False, rstrip=strip))
        elif kind == _USER_DEFINED:
            strip = phi3 and text == "</s>"
            user_defined.append(tokenizers.AddedToken(text, special=False, normalized=normalized, rstrip=strip))
    backend.add_special_tokens(control)
    backend.add_tokens(user_defined)


def _special(metadata: Mapping[str, Any], tokens: Sequence[str], origin: str) -> dict[str, str]:
    special = {}
    for name in ("bos", "eos", "unknown", "padding"):
        i = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if i is not None:
            if not 0 <= i < len(tokens):
                raise ValueError(f"{origin}: {name}_token_id is {i}, outside the vocabulary of {len(tokens)}")
            special[{"unknown": "unk", "padding": "pad"}.get(name, name) + "_token"] = tokens[i]
    return special
