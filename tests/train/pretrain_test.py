"""A base from scratch is a run with `full` on random weights: tokenizer, training, an ordinary directory that a config can name."""

import json
import math

import pytest
import tiny_run

from peftjax.interop.base import load_base
from peftjax.interop.tiny import folder_of
from peftjax.train.adapters import of_run
from peftjax.train.config import from_file
from peftjax.train.pretrain import decoder_config, pretrain, pretrain_config, train_tokenizer


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of plain text in which each line is a group."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = [f"the {animal} is {colour} and the {other} is not {colour}" for animal in tiny_run.ANIMALS for other in tiny_run.ANIMALS[:3]
            for colour in tiny_run.COLOURS]
    path.write_text("".join(json.dumps({"response": row}) + "\n" for row in rows))
    return path


def config_for(text):
    config = pretrain_config()
    config.name, config.run.data.name = "t9", str(text)
    config.decoder.vocab_size, config.decoder.width, config.decoder.head_size, config.decoder.layers = 300, 16, 4, 2
    config.run.data.length, config.run.data.fractions = 32, {"train": 0.8, "validation": 0.1, "test": 0.1}
    config.run.train.steps, config.run.train.batch_size, config.run.optimizer.learning_rate = 8, 4, 2e-2
    config.run.eval.before, config.run.eval.general.name, config.run.log.tensorboard = False, "", False
    return config


@pytest.mark.slow  # a base that is trained: ten seconds
def test_a_base_is_trained_written_and_found(text, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
    config = config_for(text)
    folder = pretrain(config, tmp_path / "work")
    base = load_base("tiny:t9")
    assert folder == folder_of("t9") and base.config == decoder_config(config) and base.tokenizer.vocab_size == 300
    assert base.tokenizer.decode(base.tokenizer.encode("the cat is 12")) == "the cat is 12"
    assert base.tokenizer.eos_id == base.tokenizer.bos_id
    about = json.loads((folder / "base.json").read_text())
    assert about["losses"][-1]["loss"] < math.log(300) - 0.5  # of held-out text; random weights know that there are 300 tokens
    assert about["config"]["run"]["data"]["name"] == str(text) and config.run.base.uri == ""
    begun = load_base(tmp_path / "work" / "start")
    assert begun.fingerprint != base.fingerprint and of_run(tmp_path / "work" / "run").base.fingerprint == begun.fingerprint

    weights = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr("peftjax.train.pretrain.train_tokenizer", None)  # what is done is not done again
    assert (pretrain(config, tmp_path / "work") / "model.safetensors").read_bytes() == weights


def test_the_tokenizer_is_a_function_of_the_text():
    texts = [f"a text about {word} and 12 other things" for word in tiny_run.ANIMALS + tiny_run.COLOURS]
    one, other = train_tokenizer(texts, 290), train_tokenizer(texts, 290)
    assert one.fingerprint == other.fingerprint and one.vocab_size == 290
    digits = one.encode("12")
    assert len(digits) == 2
    with pytest.raises(ValueError, match="22 texts make|21 texts make"):
        train_tokenizer(texts, 3000)


def test_what_does_not_fit_is_named(text, tmp_path):
    config = config_for(text)
    config.decoder.widht = 3
    with pytest.raises(ValueError, match="config.decoder.widht is not a field .did you mean 'width'"):
        pretrain(config, tmp_path)
    config = config_for(text)
    config.name = ""
    with pytest.raises(ValueError, match="is no name of a tiny base"):
        pretrain(config, tmp_path)


@pytest.mark.parametrize("name", ["t64", "t128"])
def test_the_configs_of_the_repository(name):
    config = from_file(f"configs/pretrain/{name}.py")
    architecture = decoder_config(config)
    assert config.name == name and architecture.width == int(name[1:]) and architecture.width == architecture.heads * architecture.head_size
