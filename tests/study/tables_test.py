import pytest
from synthetic_study import tables

from peftjax.study.tables import packed, read, unpacked


def test_tables_come_back_as_they_were(tmp_path):
    stored = tables({"A": 0.5, "B": 0.6}, data=("icd",), budgets=("small",), seeds=(0, 1), items=12)
    stored.write(tmp_path)
    found = read(tmp_path)
    assert found.trials == stored.trials and found.runs == stored.runs and found.items == stored.items
    assert found.plan["study"] == stored.plan["study"]


def test_items_of_several_metrics():
    common = {"budget": "b", "size": 0, "method": "A", "seed": 0, "id": "1", "group": "g", "nll": 0.5, "tokens": 3, "combined": ""}
    items = [{"data": "x", **common, "accuracy": 1.0}, {"data": "y, \"z\"\n", **common, "chrf": 0.25}]
    assert unpacked(packed(items)) == items
    assert packed(items) == packed(items)


def test_a_folder_without_tables(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path)
