import re
import shutil
import struct

import pytest
from synthetic_study import tables

from peftjax.study.compare import analyse
from peftjax.study.report import write_report
from peftjax.study.tables import read

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    skills = {"LoRA": 0.6, "Pfeiffer": 0.6, "Houlsby": 0.2}
    tables(skills, data=("icd",), budgets=("small",), seeds=range(5), items=90, costs=True).write(folder)
    write_report(folder)
    return folder


def test_the_answer_is_in_words(folder):
    text = (folder / "report.md").read_text()
    answer = text[text.index("## Answer"):text.index("## Pictures")]
    assert "**LoRA is better than Houlsby**: icd at small (LoRA − Houlsby: +" in answer
    for pair in analyse(read(folder)).pairs:  # each pair once, with what was found of it
        assert answer.count(f"({pair.a} − {pair.b}: {100 * pair.effect.mean:+.1f} [") == 1
    assert "Mean ranks over 1 comparison" in answer


def test_every_picture_is_there_and_in_the_page(folder):
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    named = re.findall(r"!\[.*?\]\((figures/[^)]+)\)", text)
    assert {name.split("/")[1] for name in named} == {
        "effects.png", "critical.png", "pareto-bytes.png", "pareto-time.png", "pareto-latency-1x32.png", "domains.png", "learning.png",
        "tuning.png"}
    for name in named:
        content = (folder / name).read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        assert content.startswith(PNG) and width > 400 and height > 150
    assert page.count("data:image/png;base64,") == len(named)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # it needs no other file


def test_it_is_made_again_from_the_tables_alone(folder, tmp_path):
    shutil.copytree(folder / "tables", tmp_path / "tables")
    write_report(tmp_path)
    for name in ("report.md", "report.html"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_what_is_unfair_is_not_compared(tmp_path):
    stored = tables({"A": 0.5, "B": 0.5}, data=("icd",), budgets=("small",), seeds=(0, 1), items=12)
    stored.runs[:] = [run for run in stored.runs if (run["method"], run["seed"]) != ("B", 1)]
    stored.write(tmp_path)
    text = write_report(tmp_path).read_text()
    assert "icd at small: B has not run seed 1 yet." in text and "Nothing can be said yet" in text


def test_a_study_that_has_stored_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path)
