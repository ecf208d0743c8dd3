"""The comparison with the harness's Hugging Face backend: what counts as a difference, and that there is none worth the name."""

import pytest
import tiny_checkpoint

from peftjax.evals.harness_compare import Difference, compare, difference
from peftjax.interop.base import load_base


def test_differences_are_counted_by_kind_whatever_the_order_of_samples():
    ours = [{"doc_id": 1, "resps": [[(-2.0, True)], [(-3.0, False)]]}, {"doc_id": 0, "resps": [[(-1.0, True)]]}]
    theirs = [{"doc_id": 0, "resps": [[(-1.5, True)]]}, {"doc_id": 1, "resps": [[(-2.0, False)], [(-3.0, False)]]}]
    assert difference("x", ours, theirs) == Difference("x", 3, 0.5, 6.5 / 3, 1, 0)
    said = [[{"doc_id": 0, "resps": [[text]]}] for text in ("a", "b")]
    assert difference("y", said[0], said[1]) == Difference("y", 1, 0.0, 0.0, 0, 1)
    rolling = [[{"doc_id": 0, "resps": [[score]]}] for score in (-4.0, -4.25)]
    assert difference("z", rolling[0], rolling[1]) == Difference("z", 1, 0.25, 4.25, 0, 0)


@pytest.mark.slow  # two backends, one of them PyTorch: half a minute
def test_both_backends_agree(tmp_path):
    for needed in ("lm_eval", "torch", "transformers"):
        pytest.importorskip(needed, reason="the other backend needs it")
    tiny_checkpoint.write(tmp_path / "base")
    base = load_base(str(tmp_path / "base"))
    for found in compare(base, tmp_path / "out", rows=3, max_length=64):
        assert found.items >= 3 and found.largest < 1e-3 and found.flags == found.texts == 0
