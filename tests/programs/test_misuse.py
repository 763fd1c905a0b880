"""Whatever is given to `define`: it is refused, or a rule that leaves all memory but its arrays alone."""

import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="guards memory as Unix does")
ROOT = Path(__file__).parents[2]


def run(seed, count):
    """Misuse `define` in a process of its own, which may be killed."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.programs.misuse", *map(str, (seed, 0, count))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"{last}, process ended with {done.returncode}: {done.stderr[-2000:]}"
    return literal_eval(last[0])


def test_what_is_given_to_define():
    outcomes = run(1, 1500)
    assert sum(outcomes.values()) == 1500
    assert outcomes["defined"] > 300
    assert outcomes["TypeError"] > 100
    assert outcomes["ValueError"] > 300


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(2, 10))
def test_more_of_what_is_given_to_define(seed):
    assert sum(run(seed, 4000).values()) == 4000
