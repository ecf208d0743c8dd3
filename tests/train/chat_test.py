"""Talking to a base and to a run: the same text merged and not, and refusals."""

import io

import pytest
from tiny_run import tiny_config, write_base

from peftjax.models.sampling import Sampling
from peftjax.peft import lora
from peftjax.train.chat import Speaker, converse
from peftjax.train.config import methods
from peftjax.train.loop import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few more steps than the tiny one, so that it has something to say."""
    folder = tmp_path_factory.mktemp("chat")
    config = tiny_config(folder)
    config.peft = methods(lora(rank=8, alpha=32, targets=["all-linear", "embed_tokens"]))
    config.train.steps, config.eval.before, config.eval.every, config.checkpoint.every = 60, False, 0, 30
    return run(config, folder / "run")


def test_merged_weights_say_what_the_adapter_says(trained, capsys):
    answers = []
    for merged in (False, True):
        converse(Speaker.load(str(trained), None, merged=merged), "paint the cat red", max_new=8)
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and answers[0].strip()


def test_an_earlier_checkpoint_can_be_asked(trained):
    assert "".join(Speaker.load(str(trained), None, step=30).answer("paint the cat red", max_new=8))
    with pytest.raises(ValueError, match="no checkpoint of step 7"):
        Speaker.load(str(trained), None, step=7)


def test_a_base_of_ones_own_answers_plain_text(tmp_path):
    speaker = Speaker.load(None, str(write_base(tmp_path / "base")), plain=True)
    asked = {"max_new": 6, "sampling": Sampling(1.0, seed=1)}
    free = "".join(speaker.answer("paint", **asked))
    assert len(free) > 2 and "".join(speaker.answer("paint", **asked)) == free != "".join(speaker.answer("paint", max_new=6))
    assert "".join(speaker.answer("paint", stop=[free[1:3]], **asked)) == free.split(free[1:3])[0]


def test_an_adapter_of_another_base_is_refused(trained, tmp_path):
    import json
    import shutil

    import jax

    from peftjax.interop.base import load_base
    from peftjax.interop.hf import write_directory
    from peftjax.models.decoder import init_params

    copied = tmp_path / "run"
    shutil.copytree(trained, copied)
    config = json.loads((copied / "config.json").read_text())
    base = load_base(config["base"]["uri"])
    write_directory(tmp_path / "base", base.config, init_params(base.config, jax.random.key(5)))
    base.tokenizer.write_directory(tmp_path / "base")
    config["base"]["uri"] = str(tmp_path / "base")
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="fingerprint"):
        Speaker.load(str(copied), None)


def test_another_tokenizer_is_refused(trained, tmp_path):
    import json
    import shutil

    copied, base = tmp_path / "run", tmp_path / "base"
    shutil.copytree(trained, copied)
    config = json.loads((copied / "config.json").read_text())
    shutil.copytree(config["base"]["uri"], base)
    (base / "tokenizer_config.json").write_text(json.dumps({"bos_token": "</s>", "eos_token": "<s>"}))
    config["base"]["uri"] = str(base)
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="tokenizer of fingerprint"):
        Speaker.load(str(copied), None)


def test_a_chat_ends_with_its_input(trained, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("paint the cat red\n"))
    converse(Speaker.load(str(trained), None), None, max_new=2)
    assert capsys.readouterr().out.count("> ") == 2


@pytest.mark.parametrize(("arguments", "message"), [
    ({"run": None, "base_uri": None, "merged": True}, "belong to a run"),
    ({"run": "runs/none", "base_uri": "x"}, "exclude each other"),
    ({"run": "runs/none", "base_uri": None}, "is no work directory"),
])
def test_wrong_combinations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Speaker.load(arguments.pop("run"), arguments.pop("base_uri"), **arguments)
