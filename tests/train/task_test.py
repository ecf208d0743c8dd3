"""What a run trains for: chosen by the base, refused where the config asks for something else."""

import dataclasses
import json

import pytest
import tiny
from tiny_encoder import BARE, TINY, tiny_config

from peftjax.data.records import Record
from peftjax.data.template import Template
from peftjax.peft import classifier, head_only, lora, pfeiffer, prefix, prompt_tuning
from peftjax.train.config import check, default_config, methods
from peftjax.train.task import NEXT_TOKEN, Classification, task_for

RECORDS = [Record(prompt=text, response=label) for text, label in (("one", "b"), ("two", "a"), ("three", "b"))]


def config(*specifications, **data):
    found = default_config()
    found.peft = methods(*specifications or (pfeiffer(size=4), classifier()))
    found.data.length = 8
    found.data.update(data)
    return found


def test_a_decoder_learns_the_next_token():
    assert task_for(config(lora(rank=2)), tiny.TINY) is NEXT_TOKEN
    assert NEXT_TOKEN.learn(RECORDS, Template()) is NEXT_TOKEN and NEXT_TOKEN.specification() == {}


def test_labels_are_those_of_the_training_records_sorted_unless_given():
    learnt = task_for(config(), TINY).learn(RECORDS, Template())
    assert learnt.labels == ("a", "b") and learnt.specification() == {"labels": ["a", "b"]}
    assert not learnt.measures_base and not learnt.general
    for given in (config(labels=("b", "a", "c")), config(classifier(labels=("b", "a", "c")))):
        assert task_for(given, TINY).learn(RECORDS, Template()).labels == ("b", "a", "c")
    (filled,) = learnt.methods([classifier(hidden=False, name="tone")])
    assert filled == classifier(labels=("a", "b"), hidden=False, name="tone")


def test_without_a_classifier_the_bases_own_head_and_labels_are_kept():
    task = task_for(config(head_only()), TINY)
    assert task.labels == TINY.labels and task.measures_base
    with pytest.raises(ValueError, match=r"no classification head; add classifier\(\) to config.peft"):
        task_for(config(pfeiffer(size=4)), BARE)


def test_names_outdo_the_numbers_of_a_checkpoint_that_knows_none():
    numbered = dataclasses.replace(TINY, labels=("LABEL_0", "LABEL_1"))
    own = task_for(config(head_only(), labels=("bad", "good")), numbered)
    assert own.labels == own.own == ("bad", "good") and own.measures_base
    brought = task_for(config(classifier(labels=2), labels=("bad", "good")), BARE)
    assert brought.labels == ("bad", "good") and brought.methods([classifier(labels=2)]) == [classifier(labels=("bad", "good"))]
    with pytest.raises(ValueError, match="labels disagree"):
        task_for(config(classifier(labels=3), labels=("bad", "good")), BARE)


def test_a_pair_is_shown_as_two_lines():
    task = Classification((), (), Template(prompt="{lang}"), True)
    assert task.text(Record(prompt="one", response="a", lang="en"), None, Template()) == "one\nen"


@pytest.mark.parametrize("asked, base, message", [
    (config(lora(rank=2), labels=("a", "b"), second="{x}"), tiny.TINY, "data.labels and config.data.second belong to classification"),
    (config(chat=True), TINY, "config.data.chat belongs to decoders"),
    (config(share_prefixes="on"), TINY, "an encoder, in which the beginning of a text sees its end"),
    (config(length=12), TINY, "config.data.length is 12; the base has positions for 11 tokens"),
    (
        config(classifier(), prefix(length=4)), TINY,
        "config.data.length is 8, behind 4 positions of config.peft; the base has positions for 11 tokens",
    ),
    (
        config(prompt_tuning(length=2), prefix(length=3, offset=False, name="task"), length=9),
        dataclasses.replace(tiny.TINY, learned_positions=True, max_length=10),
        "config.data.length is 9, behind 2 positions of config.peft; the base has learned positions for 10 tokens",
    ),
    (config(head_only(), labels=("a", "b")), TINY, "labels disagree: config.data.labels are a, b; the base's own labels are no, perhaps"),
    (config(classifier(labels=("a", "b")), labels=("b", "a")), TINY, "config.data.labels are b, a; classifier's labels are a, b"),
])
def test_what_does_not_belong_together_is_refused(asked, base, message):
    with pytest.raises(ValueError, match=message):
        task_for(asked, base)


def test_the_config_accepts_the_fields_of_classification(tmp_path):
    found = tiny_config(tmp_path)
    found.data.second, found.data.labels = "{other}", ("on", "off", "question")
    check(found)
    assert json.loads((tmp_path / "task.jsonl").read_text().splitlines()[0])["response"] == "on"
