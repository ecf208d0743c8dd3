"""The bank: values that are values, facts that their section says, products that nobody shares."""

import collections
import re

import pytest

from peftjax.data.sets import rhobank
from peftjax.evals.metrics import METRICS


def of_kind(kind):
    return [record for record in rhobank.build() if record.source.endswith(f" {kind}")]


def test_the_kinds_are_there_and_can_be_chosen():
    counts = {kind: len(of_kind(kind)) for kind in rhobank.KINDS}
    assert counts["section"] > 2000 and counts["fact_closed"] > 1000 and counts["fact_open"] > 300
    assert {record.id for record in rhobank.build(kinds=("fact_open",))} == {record.id for record in of_kind("fact_open")}
    with pytest.raises(ValueError, match="choose some of section, fact_closed, fact_open"):
        rhobank.build(kinds=("facts",))


def test_groups_are_products_of_ten_departments():
    departments = collections.Counter(record.group.split("/")[0] for record in rhobank.build())
    assert set(departments) == set(rhobank.DEPARTMENTS) - {"customer_support"}  # its one document is for the staff
    assert len({record.group for record in rhobank.build()}) > 60
    assert sum(count > 100 for count in departments.values()) >= 7


def test_a_closed_book_fact_has_a_value_with_digits_and_three_phrasings():
    records = of_kind("fact_closed")
    for record in records:
        assert re.search(r"\d", record.response) and len(record.response) < 60
        assert "_" not in record.response and "Rho-Bank" in record.prompt
    phrasings = [sum(bool(re.match(start, record.prompt)) for record in records) for start in ("Rho-Bank", "What is the", "Question about")]
    assert len(set(phrasings)) == 1 and sum(phrasings) == len(records)


def test_an_open_book_answer_stands_in_the_text_above_the_question():
    for record in of_kind("fact_open"):
        text, question = record.prompt.rsplit("\nQuestion: ", 1)
        number = re.search(r"\d[\d,.]*\d|\d", record.response)[0]
        assert number in text and question.endswith("?\nAnswer:") and 40 <= len(text) <= 700


def test_known_facts():
    facts = {record.prompt: record.response for record in rhobank.build(kinds=("fact_closed",))}
    assert facts["Rho-Bank checking accounts, Light Blue Account. Debit card daily purchase limit:"] == "$2,500"
    assert facts["What is the annual fee of Rho-Bank's Business Gold Rewards Card (business credit cards)?"] == "$200.00"
    assert METRICS["value_match"]("200 dollars.", "$200.00") == 1.0


def test_what_is_for_staff_only_is_left_out():
    for record in rhobank.build():
        assert not re.search(r"\bInternal\b.* — |\b[a-z_]+_\d{4}\b|value not available", record.prompt + record.response)
