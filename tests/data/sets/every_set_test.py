"""What every built-in set promises, from the real packages: the same bytes each time, one answer to a prompt, whole groups."""

import collections
import os
import shutil
import subprocess
import sys

import pytest

import peftjax
from peftjax.cache import cache_dir
from peftjax.data.records import content_hash
from peftjax.data.sets import general, ha_intents, i18n, icd_chapter, python_source, qa, rhobank, safety, shell
from peftjax.data.splits import refuse_overlap, split_records

BUILDERS = {
    "general": lambda: general.build(),
    "ha_intents": lambda: ha_intents.build(),
    "i18n": lambda: i18n.build(),
    "icd_chapter": lambda: icd_chapter.build(cap=50),
    "python_source": lambda: python_source.build(),
    "qa": lambda: qa.build(),
    "rhobank": lambda: rhobank.build(),
    "safety": lambda: safety.build(),
    "shell": lambda: shell.build(),
}
# The content of the default sets; `general` and `python_source` follow the version of Python.
# Changing a builder's records changes its VERSION and this.
CONTENT = {
    "ha_intents": "48fbccfca4308af05cceb27fc54231cbb0a2dc212779d323b37021fa865e1685",
    "i18n": "a5d85b426f49104419748b8fb4f56fdcd117776bc2ddc34232965f60c5687b8e",
    "icd_chapter": "3e2449f6d87be60a745266f3e33d74f48be834aee055bb252eecb74c601e8d57",
    "qa": "75f334bbf913d1ae9c9356d95e11371d34d6065b0ebda26941abdfa4b5535bab",
    "rhobank": "ce2936066eae664353ef16bc6ac6abe184088451069ba88bb4c12e8e5aaea390",
    "safety": "0b357d9dc0ec6dcbe26c0e5b1d18e4bd8b0a66147c99eb179464a1ea61f791b3",
    "shell": "bd6f80f741229371333709f8426b41dfc1985e5623990077cff3e172ae1d91aa",
}


@pytest.fixture
def fresh_sets(tmp_path, monkeypatch):
    """A cache without built sets, but with the package files already fetched, which are checked by their sha256."""
    fetched = cache_dir()
    monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))
    for part in ("pypi", "npm"):
        (fetched / part).mkdir(exist_ok=True)
        (tmp_path / part).symlink_to(fetched / part)
    return tmp_path


@pytest.mark.parametrize("name", BUILDERS)
def test_a_prompt_has_one_answer_and_splits_do_not_overlap(name):
    records = BUILDERS[name]()
    assert len({record.id for record in records}) == len(records)
    answers = collections.defaultdict(set)
    for record in records:
        answers[record.prompt or record.response].add(record.response)
    assert all(len(found) == 1 for found in answers.values())
    splits = split_records(records, {"train": 0.8, "test": 0.2})
    assert all(splits.values())
    refuse_overlap(splits["train"], splits["test"])


@pytest.mark.parametrize("name", BUILDERS)
def test_a_record_is_clean_and_says_where_it_is_from(name):
    for record in BUILDERS[name]():
        domain, _, unit = record.group.partition("/")
        assert domain and unit and record.lang and record.source
        assert record.prompt == record.prompt.lstrip() and record.response == record.response.strip()


@pytest.mark.slow  # starts a process for each set
@pytest.mark.parametrize("name", BUILDERS)
def test_built_anew_in_another_process_the_records_are_the_same(name, fresh_sets):
    code = f"import data.sets.every_set_test as t; from peftjax.data.records import content_hash as h; print(h(t.BUILDERS[{name!r}]()))"
    root = os.path.dirname(os.path.dirname(peftjax.__file__))
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root}/tests", "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(fresh_sets / "sets")
    assert done.stdout.strip() == content_hash(BUILDERS[name]()) == CONTENT.get(name, done.stdout.strip())


@pytest.mark.parametrize("build", [rhobank.build, shell.build, qa.build])
def test_another_seed_is_another_order_of_the_same(build):
    one, other = [record.id for record in build()], [record.id for record in build(seed=1)]
    assert one != other and sorted(one) == sorted(other)
