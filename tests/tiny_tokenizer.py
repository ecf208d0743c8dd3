"""A byte-level BPE tokenizer trained on a few sentences, with ChatML and its control tokens."""

import functools

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from peftjax.models.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SENTENCES = ("turn the light in the kitchen on", "the user and the assistant talk about the end of the text", "im_start im_end") * 3


@functools.cache
def backend() -> tokenizers.Tokenizer:
    """The bare tokenizer: 256 bytes, 3 control tokens and some merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


@functools.cache
def tokenizer() -> Tokenizer:
    """The tokenizer with bos, eos and template, but no padding token."""
    return Tokenizer(backend(), {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}, CHATML)
