"""Classified texts: special tokens and types as transformers has them, labels by name, cuts at the end, batches."""

import numpy as np
import pytest
from tiny_encoder import GOLDEN

from peftjax.data.batches import Batches, eval_batches
from peftjax.data.labelled import label_rows, labels_of
from peftjax.data.records import Record
from peftjax.data.template import Template
from peftjax.models.tokenizer import Tokenizer

PLAIN, SECOND = Template(), Template(prompt="{other}")
LABELS = ("LABEL_0", "LABEL_1", "LABEL_2")


def records(name):
    golden = np.load(GOLDEN / name / "golden.npz")
    texts = zip(golden["texts"], golden["pairs"], golden["labels"], strict=True)
    return golden, [Record(prompt=str(text), response=LABELS[label], extra={"other": str(pair)}) for text, pair, label in texts]


@pytest.mark.parametrize("name, typed", [("bert", True), ("roberta", False)])
def test_pairs_are_tokenised_as_transformers_does(name, typed):
    golden, rows = records(name)
    pairs = [i for i, record in enumerate(rows) if record.extra["other"]]
    found = label_rows([rows[i] for i in pairs], Tokenizer.from_directory(GOLDEN / name), PLAIN, LABELS, 64, SECOND, typed)
    for number, i in enumerate(pairs):
        used = golden["attention_mask"][i] > 0
        assert found.row(number).tolist() == golden["tokens"][i][used].tolist()
        types = found.row_types(number)
        assert types is None if name == "roberta" else types.tolist() == golden["token_type_ids"][i][used].tolist()
    assert found.labels.tolist() == golden["labels"][pairs].tolist()


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_single_texts_are_tokenised_as_transformers_does(name):
    golden, rows = records(name)
    single = [i for i, record in enumerate(rows) if not record.extra["other"]]
    found = label_rows([rows[i] for i in single], Tokenizer.from_directory(GOLDEN / name), PLAIN, LABELS, 64)
    assert found.types is None and len(single) == 2
    for number, i in enumerate(single):
        assert found.row(number).tolist() == golden["tokens"][i][golden["attention_mask"][i] > 0].tolist()


def made(length=64, texts=("the light is on", "off", "no no no no no no no"), second=None):
    tokenizer = Tokenizer.from_directory(GOLDEN / "bert")
    rows = [Record(prompt=text, response=f" {'xyx'[i]} ", extra={"other": "a b c d e"}) for i, text in enumerate(texts)]
    return tokenizer, rows, label_rows(rows, tokenizer, PLAIN, ("x", "y"), length, second)


def test_a_long_text_loses_its_end_and_keeps_its_special_tokens():
    tokenizer, _, whole = made()
    _, _, cut = made(length=5)
    ends = tokenizer.encode_with_special("")[0]
    assert cut.truncated == 2 and whole.truncated == 0
    for i in (0, 2):
        assert cut.row(i).tolist() == [ends[0], *whole.row(i)[1:4].tolist(), ends[1]]
    _, _, pair = made(length=9, texts=("on",), second=SECOND)
    assert pair.row_types(0).tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]  # the longer of the two was cut


def test_control_texts_in_a_record_stay_text():
    tokenizer, _, rows = made(texts=("[SEP] [CLS]",))
    control = set(tokenizer.control_ids.values()) - {tokenizer.control_ids["[UNK]"]}
    assert [int(i) in control for i in rows.row(0)] == [True, *[False] * (len(rows.row(0)) - 2), True]


@pytest.mark.parametrize("layout", ["packed", "buckets", "rows"])
def test_every_text_is_in_a_batch_once_an_epoch_with_its_label_at_its_first_token(layout):
    _, _, rows = made(second=SECOND)
    batches = Batches(rows, 1, 64, seed=0, layout=layout)
    seen = []
    for step in range(batches.steps_per_epoch):
        batch = batches.at(step)
        lines, slots = np.nonzero(batch.weights)
        at = batch.loss_positions[lines, slots]
        assert (batch.positions[lines, at] == 0).all()
        for line, place, label in zip(lines, at, batch.targets[lines, slots], strict=True):
            part = batch.segments[line] == batch.segments[line, place]
            seen.append((batch.tokens[line][part].tolist(), batch.types[line][part].tolist(), int(label)))
    assert sorted(seen) == sorted((rows.row(i).tolist(), rows.row_types(i).tolist(), int(rows.labels[i])) for i in range(3))


def test_evaluation_batches_say_which_text_a_label_is_of():
    _, _, rows = made()
    (batch,) = eval_batches(rows, 2, 64)
    lines, slots = np.nonzero(batch.weights)
    of = batch.rows[lines, slots]
    assert sorted(of) == [0, 1, 2] and (batch.targets[lines, slots] == rows.labels[of]).all()
    assert batch.types is None


def test_labels_are_those_that_occur_sorted():
    _, rows, _ = made()
    assert labels_of(rows, PLAIN) == ("x", "y")
    assert labels_of(rows, Template(response="{other}{response}")) == ("a b c d e x", "a b c d e y")
    with pytest.raises(ValueError, match="nothing to tell apart"):
        labels_of(rows[:1], PLAIN)


def test_refusals():
    tokenizer, rows, _ = made()
    with pytest.raises(ValueError, match="has the label 'y'; labels are x, z"):
        label_rows(rows, tokenizer, PLAIN, ("x", "z"), 64)
    with pytest.raises(ValueError, match="no text to classify"):
        label_rows([Record(response="x")], tokenizer, PLAIN, ("x", "y"), 64)
