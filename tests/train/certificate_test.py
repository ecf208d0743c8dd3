"""The sample of a certificate: texts cut and padded; the merge with the real model is in tests/train/export_test.py."""

import numpy as np
import pytest
from tiny_encoder import BARE

from peftjax.interop.base import Base
from peftjax.train.adapters import Ready
from peftjax.train.certificate import batches, merge_quantised
from peftjax.train.config import default_config


def test_texts_fill_batches_from_the_left():
    (first, counted), (second, last) = batches([[1, 2, 3], [4], [5, 6]], batch=2, length=4)
    np.testing.assert_array_equal(first, [[1, 2, 3, 0], [4, 0, 0, 0]])
    np.testing.assert_array_equal(counted, [[True, True, True, False], [True, False, False, False]])
    np.testing.assert_array_equal(second, [[5, 6, 0, 0], [0, 0, 0, 0]])
    assert last.sum() == 2 and first.dtype == np.int32


def test_no_texts_are_no_batches():
    assert batches([]) == []


def test_an_encoder_is_refused():
    ready = Ready(Base("minilm", BARE, {}, None, ""), {}, (), (), default_config(), "minilm", {})
    with pytest.raises(ValueError, match="minilm is an encoder; the certificate"):
        merge_quantised(ready)
