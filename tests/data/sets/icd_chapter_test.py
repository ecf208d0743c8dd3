"""ICD-10-CM chapters: balanced labels, groups that are categories, letters where they belong."""

import collections

from peftjax.data.sets import icd_chapter


def test_icd_chapters_are_balanced_and_grouped_by_category():
    records = icd_chapter.build(cap=50)
    counts = collections.Counter(record.response for record in records)
    assert set(counts) == set(icd_chapter.LABELS)
    assert {label: count for label, count in counts.items() if count != 50} == {"special purpose": counts["special purpose"]}
    by_category = collections.defaultdict(set)
    for record in records:
        label, category = record.group.split("/")
        assert label == record.response and len(category) == 3
        by_category[category].add(label)
    assert all(len(labels) == 1 for labels in by_category.values())
    letters = {"A": "infectious", "C": "neoplasm", "J": "respiratory", "O": "pregnancy", "Q": "congenital", "Z": "health status"}
    found = {record.group.split("/")[1][0]: record.response for record in records}
    assert {letter: found[letter] for letter in letters} == letters
