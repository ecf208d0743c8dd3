"""Makes tiny encoders with a sequence-classification head: tests/golden/bert and tests/golden/roberta.

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    /tmp/golden/bin/python tests/golden/make_bert_golden.py

Each is a directory in Hugging Face layout (config.json, model.safetensors in float32, tokenizer.json, tokenizer_config.json) and
golden.npz:

    texts, pairs [B]                                       what was tokenized (a pair of "" is none)
    tokens, attention_mask, token_type_ids [B, T]          right padding, special tokens included
    hidden [B, T, D]                                       after the last layer; rows of padding mean nothing
    pooled [B, D]                                          bert only: tanh(W h_0 + b)
    logits [B, 3], labels [B], loss []                     mean cross-entropy of the labels
    gradients/<parameter>                                  of that loss, for the parameters in GRADIENTS

bert has a pooler before its classifier; roberta has none, a two-layer classifier, and positions that count from the padding id + 1.
"""

import os
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import tokenizers
import torch
import transformers

HERE = Path(__file__).parent
SIZES = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    initializer_range=0.3,  # large, so that attention is far from uniform
    num_labels=3,
)
TEXTS = [
    ("the light is on", "turn off the lights"),
    ("No, I'm not; 42!", ""),
    ("Caf\u00e9 na\u00efve \u4e2d\u6587", "x"),
    ("a", ""),
]
WORDS = "the is on off not light turn no in it and ##s ##ing ##ed".split()
GRADIENTS = {
    "bert": [
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.token_type_embeddings.weight",
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.1.output.dense.weight",
        "bert.pooler.dense.weight",
        "classifier.weight",
    ],
    "roberta": [
        "roberta.embeddings.word_embeddings.weight",
        "roberta.embeddings.position_embeddings.weight",
        "roberta.encoder.layer.0.attention.self.query.weight",
        "roberta.encoder.layer.1.output.dense.weight",
        "classifier.dense.weight",
        "classifier.out_proj.weight",
    ],
}


def bert_tokenizer():
    """WordPiece over a few words and all lower-case letters, digits and some marks."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters), *",.;!?'-", *WORDS]
    return transformers.BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, do_lower_case=True)


def roberta_tokenizer():
    """Byte-level BPE: the 256 bytes and a few merges."""
    merges = [tuple(pair.split()) for pair in ("t h", "th e", "\u0120 the", "l i", "g h", "gh t", "li ght", "\u0120 light", "o n")]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, *("".join(pair) for pair in merges), "<mask>"]
    return transformers.RobertaTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges)


def models():
    bert, roberta = bert_tokenizer(), roberta_tokenizer()
    yield (
        "bert",
        bert,
        lambda: transformers.BertForSequenceClassification(
            transformers.BertConfig(**SIZES, vocab_size=len(bert), max_position_embeddings=64, pad_token_id=bert.pad_token_id)
        ),
    )
    yield (
        "roberta",
        roberta,
        lambda: transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(
                **SIZES,
                vocab_size=len(roberta),
                max_position_embeddings=66,
                type_vocab_size=1,
                pad_token_id=1,
                bos_token_id=0,
                eos_token_id=2,
            )
        ),
    )


def main():
    for number, (name, tokenizer, build) in enumerate(models()):
        torch.manual_seed(number)
        model = build().eval().to(torch.float32)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if "LayerNorm.weight" in path:
                    parameter.normal_(1.0, 0.2)
                elif path.endswith("bias"):
                    parameter.normal_(0.0, 0.3)
        folder = HERE / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

        pairs = [(text, pair) if pair else text for text, pair in TEXTS]
        rows = [tokenizer(*(row if isinstance(row, tuple) else (row,)), return_token_type_ids=True) for row in pairs]
        batch = tokenizer.pad(rows, return_tensors="pt")
        labels = torch.tensor([2, 0, 1, 1])
        output = model(**batch, labels=labels, output_hidden_states=True)
        output.loss.backward()
        parameters = dict(model.named_parameters())
        golden = dict(
            texts=np.array([text for text, _ in TEXTS]),
            pairs=np.array([pair for _, pair in TEXTS]),
            tokens=batch["input_ids"].numpy().astype(np.int32),
            attention_mask=batch["attention_mask"].numpy().astype(np.int32),
            token_type_ids=batch["token_type_ids"].numpy().astype(np.int32),
            hidden=output.hidden_states[-1].detach().numpy(),
            logits=output.logits.detach().numpy(),
            labels=labels.numpy().astype(np.int32),
            loss=output.loss.detach().numpy(),
            versions=np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}"]),
        )
        if name == "bert":
            golden["pooled"] = model.bert.pooler(output.hidden_states[-1]).detach().numpy()
        for path in GRADIENTS[name]:
            golden[f"gradients/{path}"] = parameters[path].grad.numpy()
        np.savez_compressed(folder / "golden.npz", **golden)
        print(name, {file.name: file.stat().st_size for file in sorted(folder.iterdir())}, golden["tokens"].tolist())


if __name__ == "__main__":
    main()
