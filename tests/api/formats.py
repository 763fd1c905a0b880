"""The formats of checkpoint files, and bfloat16, each where it is installed."""

from importlib import import_module
from importlib.util import find_spec

import pytest

ENDINGS = [
    ".npz",
    pytest.param(".safetensors", marks=pytest.mark.skipif(not find_spec("safetensors"), reason="not installed")),
]
BFLOAT16 = import_module("ml_dtypes").bfloat16 if find_spec("ml_dtypes") else None
needs_bfloat16 = pytest.mark.skipif(not BFLOAT16, reason="not installed")
