"""No group is divided, and a group's side depends on nothing but its name and the salt."""

import collections

import pytest

from peftjax.data.records import Record
from peftjax.data.splits import refuse_overlap, split_records

RECORDS = [Record(prompt=f"p{i}", response="r", group=f"g{i % 2000}") for i in range(6000)]


def test_partitions_the_records_by_whole_group():
    splits = split_records(RECORDS)
    assert sorted(r.id for part in splits.values() for r in part) == sorted(r.id for r in RECORDS)
    sides = collections.defaultdict(set)
    for name, part in splits.items():
        for record in part:
            sides[record.group].add(name)
    assert all(len(names) == 1 for names in sides.values())
    # 2000 groups: a binomial share of .05 has a standard deviation of .0049.
    assert abs(len(splits["test"]) / len(RECORDS) - 0.05) < 0.02
    refuse_overlap(splits["train"], splits["validation"] + splits["test"])


def test_a_group_keeps_its_side_when_others_go():
    whole, part = split_records(RECORDS), split_records(RECORDS[1::7])
    for name, records in part.items():
        assert {r.group for r in records} <= {r.group for r in whole[name]}


def test_the_salt_moves_groups():
    assert {r.group for r in split_records(RECORDS)["test"]} != {r.group for r in split_records(RECORDS, salt="other")["test"]}


def test_an_explicit_split_wins_for_its_group():
    fractions = {"train": 1.0, "test": 0.0}
    records = [Record(prompt=f"p{i}", response="r", group="g", split="test" if i == 3 else "") for i in range(5)]
    assert [len(part) for part in split_records([*records, *RECORDS], fractions).values()] == [6000, 5]


def test_refuses_a_group_in_two_splits_and_unknown_splits():
    pair = [Record(prompt=side, response="r", group="g", split=side) for side in ("train", "test")]
    with pytest.raises(ValueError, match="group 'g' is in two splits"):
        split_records(pair)
    with pytest.raises(ValueError, match="'dev'; the splits are train, validation, test"):
        split_records([Record(response="r", split="dev")])


@pytest.mark.parametrize("fractions", [{}, {"train": 0.9}, {"train": 1.5, "test": -0.5}])
def test_refuses_shares_that_do_not_sum_to_one(fractions):
    with pytest.raises(ValueError, match="sum to 1"):
        split_records(RECORDS[:1], fractions)


def test_overlap_by_id_group_or_content_is_refused_with_ids():
    train = [Record(prompt=f"p{i}", response="r") for i in range(30)]
    fresh = Record(prompt="fresh", response="r")
    refuse_overlap(train, [fresh])
    for name, shared in {
        "id": Record(prompt="new", response="r", id=train[0].id, group="other"),
        "group": Record(prompt="new", response="r", id="new", group=train[0].group),
        "content": Record(prompt="p0", response="r", id="new", group="other"),
    }.items():
        with pytest.raises(ValueError, match=rf"of 2 evaluation records 1 share their {name} .*ids {shared.id}"):
            refuse_overlap(train, [fresh, shared])
    with pytest.raises(ValueError, match=rf"30 share their id .*{train[9].id}, \.\.\."):
        refuse_overlap(train, train)
