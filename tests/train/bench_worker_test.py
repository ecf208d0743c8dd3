"""Workers over real processes: facts, answers, noise on stdout, and what a dead one says."""

import sys

import pytest

from peftjax.train.bench_worker import Turns, Worker

CHILD = """
import os, time
from peftjax.train.bench_worker import serve

def load():
    print("a library says hello")
    os.system("echo and so does its child")
    return {"loaded": 3}, {"double": lambda x: print("noise") or 2 * x, "leave": lambda: os._exit(7)}

serve(load)
"""


def worker(name="child"):
    return Worker(name, [sys.executable, "-c", CHILD])


def test_answers_what_is_asked_and_nothing_else():
    with worker() as child:
        assert child.ready() == {"loaded": 3} and child.ready_s > 0
        assert child.ask("double", x=21) == 42
        assert child.ask("double", x=[1]) == [1, 1]


def test_a_child_that_ends_is_named_with_its_exit_code():
    with worker("the child") as child:
        child.ready()
        with pytest.raises(ChildProcessError, match="the child ended with exit code 7"):
            child.ask("leave")


def test_a_child_ends_with_its_parent_s_interest():
    with worker() as child:
        child.ready()
    assert child._process.returncode == 0


def test_turns_ask_one_and_watch_the_others():
    with worker("a") as a, worker("b") as b:
        a.ready(), b.ready()
        turns = Turns([a, b])
        assert turns.ask(a, "double", x=1) == 2 and turns.ask(b, "double", x=2) == 4
        assert turns.idle is None  # turns too short to say
        assert a.cpu_seconds() is None or a.cpu_seconds() >= 0
