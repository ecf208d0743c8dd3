"""Merging into a quantised base, measured with the model itself on real text.

    tree, certificate = merge_quantised(ready, Budget(kl=0.02))
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.data.sources import load_records
from peftjax.data.template import Template
from peftjax.models.encoder_config import EncoderConfig
from peftjax.peft.certificate import USUAL, Budget, Certificate
from peftjax.peft.merge import merge_into
from peftjax.train.adapters import Ready
from peftjax.train.inputs import pick

ROWS, LENGTH, BATCH = 16, 128, 4


def merge_quantised(ready: Ready, budget: Budget = USUAL, sample: str = "general") -> tuple[dict, Certificate]:
    """All adapters of a tree folded into its quantised base, see `peftjax.peft.merge.merge_into`.

    Args:
        sample: data set or JSONL file; the first LENGTH tokens of ROWS of its texts.

    Raises:
        TypeError, ValueError: as `merge_into`; an encoder, which has no next token.
    """
    if isinstance(ready.base.config, EncoderConfig):
        raise ValueError(f"{ready.base.uri} is an encoder; the certificate of a merge is of the next token, which it does not tell")
    records, _ = load_records(sample)
    template = Template()
    texts = [[*template.prompt_ids(record, ready.base.tokenizer), *ready.base.tokenizer.encode(template.texts(record)[1])]
             for record in pick(records, ROWS) if not record.messages]
    model = ready.model()
    run = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens).astype(jnp.float32))
    return merge_into(ready.params, logits=run, sample=batches([text[:LENGTH] for text in texts]), budget=budget)


def batches(texts: Sequence[Sequence[int]], batch: int = BATCH, length: int = LENGTH) -> list[tuple[Any, Any]]:
    """Ids of texts -> (tokens [batch, length] int32, counted [batch, length]) with padding behind, which no token sees."""
    found = []
    for start in range(0, len(texts), batch):
        tokens, counted = np.zeros((batch, length), np.int32), np.zeros((batch, length), bool)
        for row, text in enumerate(texts[start : start + batch]):
            tokens[row, : len(text)], counted[row, : len(text)] = text, True
        found.append((tokens, counted))
    return found
