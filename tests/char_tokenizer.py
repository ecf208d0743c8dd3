"""A tokenizer small enough to reason about: a token a character, with the methods of the real one."""

import hashlib


class CharTokenizer:
    """Ids are code points plus 10; 0 pads, 1 begins, 2 ends, 3 opens a chat turn, 4 closes it."""

    pad_id, eos_id, vocab_size = 0, 2, 5000

    def __init__(self, bos_id=1, bos_first=False):
        self.bos_id, self.bos_first = bos_id, bos_first
        self.fingerprint = hashlib.sha256(f"char {bos_id} {bos_first}".encode()).hexdigest()
        self.texts_encoded = 0

    def encode(self, text):
        self.texts_encoded += 1
        return [ord(character) + 10 for character in text]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return "".join(chr(token - 10) for token in ids if token >= 10)

    def render_chat(self, messages, add_generation_prompt):
        turns = "".join(f"<{message['role']}>{message['content']}</>" for message in messages)
        return turns + ("<assistant>" if add_generation_prompt else "")

    def encode_chat(self, messages, add_generation_prompt):
        ids = []
        for message in messages:
            ids += [3, *self.encode(message["role"] + ":" + message["content"]), 4]
        return ids + ([3, *self.encode("assistant:")] if add_generation_prompt else [])
