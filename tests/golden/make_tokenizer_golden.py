"""Makes the golden files of the tokenizers: small tokenizers of every kind, and the ids that their reference gives to nasty strings.

    python -m venv /tmp/golden && /tmp/golden/bin/pip install transformers==5.23.0 sentencepiece==0.2.3 protobuf==7.36.2
    /tmp/golden/bin/python tests/golden/make_tokenizer_golden.py

reads tokenizers/strings.jsonl (one JSON string a line) and writes tokenizers/<name>/ with

    tokenizer.json, tokenizer_config.json   what transformers saves
    gguf.json                               the metadata that llama.cpp's converter writes (not for bert and roberta)
    golden.json                             versions; by reference: ids of each string and the decoded texts that differ from the string;
                                            ids (and types) of a text and of a pair with special tokens; ids of a conversation

    llama     SentencePiece BPE, dummy prefix, byte fallback              references: sentencepiece; transformers
    gemma     SentencePiece BPE, no prefix, user-defined runs and tags    references: sentencepiece; transformers
    phi3      llama's, with added control tokens and </s> as plain text   reference: transformers
    gpt2, llama3, qwen2, roberta   byte-level BPE                         reference: transformers
    bert      WordPiece                                                   reference: transformers

The reference reads control texts within a string as text, as this project does with a user's text. None of these packages is a
dependency of this project; this file is run by hand.
"""

import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import sentencepiece
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import LlamaConverter, SentencePieceExtractor, generate_merges

FOLDER = Path(__file__).parent / "tokenizers"
STRINGS = [json.loads(line) for line in (FOLDER / "strings.jsonl").read_text("utf-8").split("\n") if line]
CORPUS = (__doc__.splitlines() + Path(__file__).read_text("utf-8").splitlines() + [s for s in STRINGS if "\0" not in s]) * 2
PAIR = ("turn the light on", "it's  on [SEP] </s>")
MESSAGES = [{"role": "user", "content": "Hi  there\n 12"}, {"role": "assistant", "content": " yes"}, {"role": "user", "content": "ok"}]
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types of GGUF, and of SentencePiece
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATES = {
    "llama": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {{ eos_token }}{% endfor %}",
    "gemma": "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}",
    "phi3": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>\n",
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    ),
}


def train_sentencepiece(folder: Path, **options) -> Path:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(folder / "tokenizer"), model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
        character_coverage=0.98, num_threads=1, minloglevel=2, **options,
    )  # fmt: skip
    return folder / "tokenizer.model"


def pieces_of(model: Path) -> list:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    return list(proto.pieces)


def sentencepiece_metadata(model: Path, added: dict[str, int] | None = None, **metadata) -> dict:
    """As the converter does it: added tokens have the score -1000, and user-defined ones are written with spaces."""
    rows = []
    for piece in pieces_of(model):
        kind = (added or {}).get(piece.piece, piece.type)
        text = piece.piece.replace("▁", " ") if kind == USER_DEFINED else piece.piece
        rows.append((text, -1000.0 if kind == USER_DEFINED else piece.score, kind))
    known = {row[0] for row in rows}
    rows += [(text, -1000.0, kind) for text, kind in (added or {}).items() if text not in known]
    tokens, scores, types = (list(column) for column in zip(*rows, strict=True))
    return {"model": "llama", "pre": "default", "tokens": tokens, "scores": scores, "token_type": types, **metadata}


def byte_level_metadata(tokenizer, pre: str, **metadata) -> dict:
    model = json.loads(tokenizer.backend_tokenizer.to_str())
    types = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in model["added_tokens"]}
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.get)
    merges = [" ".join(merge) for merge in model["model"]["merges"]]
    kinds = [types.get(token, NORMAL) for token in tokens]
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds, "merges": merges, **metadata}


class ByScores(SentencePieceExtractor):
    """The merges of a model as transformers 4 made them for LlamaConverter; in 5.23 the two no longer fit together."""

    def extract(self, vocab_scores):
        ids = {piece.piece: i for i, piece in enumerate(self.proto.pieces)}
        return ids, generate_merges(ids, vocab_scores)


class Converter(LlamaConverter):
    SpmExtractor = ByScores


def llama(folder: Path) -> tuple:
    model = train_sentencepiece(folder, vocab_size=520)
    first = ["<unk>", "<s>", "</s>"].__getitem__
    slow = SimpleNamespace(vocab_file=str(model), legacy=True, add_prefix_space=True, convert_ids_to_tokens=first)
    backend = Converter(slow).converted()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=TEMPLATES["llama"]
    )
    return fast, sentencepiece_metadata(model, bos_token_id=1, eos_token_id=2, unknown_token_id=0), model


def gemma(folder: Path) -> tuple:
    runs = ["\n" * n for n in range(1, 6)] + ["▁" * n for n in range(2, 9)]
    tags, control = ["<table>", "</table>", "<tr>"], ["<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>"]
    model = train_sentencepiece(
        folder, vocab_size=560, add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", user_defined_symbols=tags + runs, control_symbols=control,
    )  # fmt: skip
    pieces = pieces_of(model)
    ids = {piece.piece: i for i, piece in enumerate(pieces)}
    merges = generate_merges(ids, [(piece.piece, piece.score) for piece in pieces])  # Gemma's own tokenizer.json is made in this way
    fast = transformers.GemmaTokenizer(vocab=ids, merges=merges, add_bos_token=True, chat_template=TEMPLATES["gemma"])
    fast.add_tokens([AddedToken(text, normalized=False, special=text in control) for text in control + tags + runs])
    metadata = sentencepiece_metadata(
        model, bos_token_id=2, eos_token_id=1, unknown_token_id=3, padding_token_id=0, add_bos_token=True, add_space_prefix=False
    )
    return fast, metadata, model


def phi3(folder: Path) -> tuple:
    fast, _, model = llama(folder)
    added = {"</s>": USER_DEFINED, "<|endoftext|>": CONTROL, "<|assistant|>": CONTROL, "<|end|>": CONTROL, "<|user|>": CONTROL}
    added["<tool>"] = USER_DEFINED
    backend = tokenizers.Tokenizer.from_str(fast.backend_tokenizer.to_str())
    for text, kind in added.items():
        strips = kind == CONTROL and text != "<|endoftext|>" or text == "</s>"
        backend.add_tokens([AddedToken(text, normalized=False, special=kind == CONTROL, rstrip=strips)])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)  # Phi-3 puts no bos before a text; this adds nothing
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>", chat_template=TEMPLATES["phi3"]
    )
    metadata = sentencepiece_metadata(
        model, added=added, bos_token_id=1, eos_token_id=backend.token_to_id("<|endoftext|>"), unknown_token_id=0, add_bos_token=False
    )
    return fast, metadata, None


def cuts_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level(special: list[str], cuts=None) -> tuple[dict, list]:
    """Vocabulary and merges, trained; `special` come first."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cuts or pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def at_the_end(vocabulary: dict, special: list[str]) -> dict:
    """Llama 3 and Qwen number their control tokens after all others."""
    rest = [text for text in sorted(vocabulary, key=vocabulary.get) if text not in special]
    return {text: i for i, text in enumerate(rest)}


def gpt2(folder: Path) -> tuple:
    vocabulary, merges = byte_level(["<|endoftext|>"])
    fast = transformers.GPT2Tokenizer(vocab=vocabulary, merges=merges)
    return fast, byte_level_metadata(fast, "gpt-2", bos_token_id=0, eos_token_id=0, unknown_token_id=0), None


def qwen2(folder: Path) -> tuple:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary, merges = byte_level(special, cuts_by(LLAMA3.replace("{1,3}", "")))
    fast = transformers.Qwen2Tokenizer(
        vocab=at_the_end(vocabulary, special), merges=merges, extra_special_tokens=special[1:], chat_template=TEMPLATES["chatml"]
    )
    fast.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    end = len(vocabulary) - len(special)
    return fast, byte_level_metadata(fast, "qwen2", bos_token_id=end, eos_token_id=end, padding_token_id=end, add_bos_token=False), None


def llama3(folder: Path) -> tuple:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    cuts = cuts_by(LLAMA3)
    vocabulary, merges = byte_level(special, cuts)
    backend = tokenizers.Tokenizer(models.BPE(vocab=at_the_end(vocabulary, special), merges=merges, ignore_merges=True))
    backend.pre_tokenizer, backend.decoder = cuts, decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    bos, end = special[0], len(vocabulary) - len(special)
    template = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, end)])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="<|eot_id|>", chat_template=TEMPLATES["llama3"]
    )
    return fast, byte_level_metadata(fast, "llama-bpe", bos_token_id=end, eos_token_id=end + 4), None  # files name no add_bos_token


def roberta(folder: Path) -> tuple:
    vocabulary, merges = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges), None, None


def bert(folder: Path) -> tuple:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained = tokenizers.BertWordPieceTokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=420, limit_alphabet=150, special_tokens=special, show_progress=False)
    return transformers.BertTokenizer(vocab=trained.get_vocab()), None, None


def golden(fast, model: Path | None) -> dict:
    def reference(encode, decode):
        ids = [encode(text) for text in STRINGS]
        decoded = {str(i): decode(row) for i, (row, text) in enumerate(zip(ids, STRINGS, strict=True)) if decode(row) != text}
        return {"ids": ids, "decoded": decoded}

    texts = {"split_special_tokens": True}
    found = {
        "transformers": reference(
            lambda text: fast(text, add_special_tokens=False, **texts).input_ids, lambda ids: fast.decode(ids, skip_special_tokens=True)
        )
    }
    if model is not None:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        found["sentencepiece"] = reference(processor.encode, processor.decode)
    for name, given in (("single", PAIR[:1]), ("pair", PAIR)):
        encoded = fast(*given, return_token_type_ids=True, **texts)
        found[name] = {"ids": encoded.input_ids, "types": encoded.token_type_ids}
    if fast.chat_template:
        found["chat"] = fast.apply_chat_template(MESSAGES, tokenize=True, return_dict=False)
    return found


def compact(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")), ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")


def main():
    versions = [f"{module.__name__} {module.__version__}" for module in (transformers, tokenizers, sentencepiece)]
    for build in (llama, gemma, phi3, gpt2, qwen2, llama3, roberta, bert):
        folder = FOLDER / build.__name__
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with tempfile.TemporaryDirectory() as scratch:
            fast, metadata, model = build(Path(scratch))
            found = golden(fast, model)
        fast.save_pretrained(folder)
        compact(folder / "tokenizer.json")
        document = {"versions": versions, "pair_of": PAIR, "messages": MESSAGES, **found}
        (folder / "golden.json").write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
        if metadata is not None:
            ours = {"general.architecture": {"gemma": "gemma2", "phi3": "phi3"}.get(build.__name__, "llama")}
            ours |= {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
            if fast.chat_template:
                ours["tokenizer.chat_template"] = fast.chat_template
            (folder / "gguf.json").write_text(json.dumps(ours, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
        agree = "sentencepiece" not in found or [
            i for i, rows in enumerate(zip(found["sentencepiece"]["ids"], found["transformers"]["ids"], strict=True)) if rows[0] != rows[1]
        ]
        print(build.__name__, {file.name: file.stat().st_size for file in sorted(folder.iterdir())}, "differ on:", agree)


if __name__ == "__main__":
    main()
