"""The golden tokenizers: small ones of every kind, and what their reference makes of nasty strings (golden/make_tokenizer_golden.py)."""

import functools
import json
from pathlib import Path

FOLDER = Path(__file__).parent / "golden" / "tokenizers"
STRINGS = [json.loads(line) for line in (FOLDER / "strings.jsonl").read_text("utf-8").split("\n") if line]
NAMES = sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())
IN_GGUF = [name for name in NAMES if (FOLDER / name / "gguf.json").exists()]
SENTENCE_PIECE = ("llama", "gemma")  # those that the sentencepiece package itself was asked about


@functools.cache
def golden(name: str) -> dict:
    """What is known of one tokenizer."""
    return json.loads((FOLDER / name / "golden.json").read_text("utf-8"))


def metadata(name: str) -> dict:
    """Its GGUF metadata."""
    return json.loads((FOLDER / name / "gguf.json").read_text("utf-8"))


def assert_agrees(tokenizer, name: str, reference: str) -> None:
    """Ids of every string are the reference's, and so is the text of these ids."""
    expected = golden(name)[reference]
    for i, text in enumerate(STRINGS):
        assert tokenizer.encode(text) == expected["ids"][i], (i, text)
        assert tokenizer.decode(expected["ids"][i]) == expected["decoded"].get(str(i), text), (i, text)


def assert_specials_agree(tokenizer, name: str) -> None:
    """Ids and types of a text and of a pair with control tokens, and of a conversation where there is a template."""
    expected = golden(name)
    for case, given in (("single", expected["pair_of"][:1]), ("pair", expected["pair_of"])):
        assert tokenizer.encode_with_special(*given) == (expected[case]["ids"], expected[case]["types"]), case
    if "chat" in expected:
        assert tokenizer.encode_chat(expected["messages"]) == expected["chat"]
