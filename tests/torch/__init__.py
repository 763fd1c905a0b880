"""The optimizers of `fusedstep.torch` beside those of `torch.optim`; skipped as a whole where PyTorch is missing."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("expecttest")  # PyTorch's list of inputs for tests imports it
