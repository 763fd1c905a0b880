from importlib.util import find_spec

# PyTorch's list of inputs for tests imports expecttest.
collect_ignore_glob = [] if find_spec("torch") and find_spec("expecttest") else ["test_*.py"]
