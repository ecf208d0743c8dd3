"""A program starts once more with the tunable set, once only, with its arguments, and never against the user's word."""

import subprocess
import sys

import pytest

from peftjax.huge_pages import TUNABLE

PROGRAM = """
import os, sys
print("start", flush=True)
from peftjax.huge_pages import restart_with_huge_pages
restart_with_huge_pages()
print(os.environ["GLIBC_TUNABLES"], sys.argv[1:], sorted(m for m in sys.modules if m in ("jax", "numpy")), os.getpid() == int(sys.argv[1]))
"""


def run(tunables: str | None, tmp_path) -> list[str]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {} if tunables is None else {"GLIBC_TUNABLES": tunables}
    command = f'exec {sys.executable} {script} $$ "two words"'
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_starts_once_more_in_the_same_process(tmp_path):
    first, second, last = run(None, tmp_path)
    assert first == second == "start"
    assert last.startswith(f"{TUNABLE}=1 [") and "'two words'] [] True" in last


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_other_tunables_are_kept_and_the_users_choice_is_final(tmp_path):
    assert run("glibc.malloc.arena_max=2", tmp_path)[-1].startswith(f"glibc.malloc.arena_max=2:{TUNABLE}=1 ")
    assert run(f"{TUNABLE}=0", tmp_path)[0] == "start" and len(run(f"{TUNABLE}=0", tmp_path)) == 2
