"""A prompt's words become ids by the base's own tokenizer, in a run as by hand."""

import numpy as np
import pytest
from tiny_run import tiny_config
from tiny_tokenizer import tokenizer

from peftjax.interop.base import load_base
from peftjax.peft import lora, prompt_tuning
from peftjax.train.adapters import of_run
from peftjax.train.config import methods
from peftjax.train.loop import run
from peftjax.train.wording import with_ids

WORDS = "turn the lamp on"


def test_text_becomes_ids_and_nothing_else_changes(tmp_path):
    config = tiny_config(tmp_path)
    config.peft = methods(lora(rank=2), prompt_tuning(length=5, init="text", text=WORDS, name="tone"))
    before, found = config.to_dict(), with_ids(config, tokenizer())
    assert tuple(found.peft[1].ids) == tuple(tokenizer().encode(WORDS)) != ()
    assert config.to_dict() == before
    found.peft[1].ids = ()
    assert found.to_dict() == before


def test_a_config_without_words_is_left_alone(tmp_path):
    config = tiny_config(tmp_path)
    assert with_ids(config, tokenizer()) is config
    config.peft = methods(prompt_tuning(length=2, init="text", ids=(3, 1)))
    assert with_ids(config, tokenizer()) is config


@pytest.mark.slow
def test_a_run_begins_with_the_words_and_is_read_again(tmp_path):
    config = tiny_config(tmp_path)
    config.peft = methods(prompt_tuning(length=3, init="text", text=WORDS))
    config.train.steps, config.optimizer.learning_rate, config.optimizer.warmup = 1, 1e-12, 0
    there, base = of_run(run(config, tmp_path / "run")), load_base(config.base.uri)
    ids = np.resize(base.tokenizer.encode(WORDS), 3)
    np.testing.assert_allclose(there.params["prompt"]["default"].embedding, base.params["embed"]["embedding"][ids], atol=1e-9)
