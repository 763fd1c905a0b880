"""Fixtures for rules that are made of functions."""

import pytest

import fusedstep as fs
from fusedstep import _cpu


@pytest.fixture(params=["machine", "auto"])
def both_ways(request):
    """Run a test with rules that the machine runs, and with machine code where there is some."""
    isa = _cpu.isa()
    fs.use_rules(request.param)
    yield
    fs.use_isa(isa)
    fs.use_rules("auto")
