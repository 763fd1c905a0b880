"""
One file per optimizer, named after its class: all that the tests know of this one optimizer.

Every file says, as constants and a function:

* DEFAULTS: the arguments that only this class has, in the order of its constructor, with their defaults.
* RULES: the rules of the engine that the class makes, and the arguments that choose each.
* formula: the update after all gradients `g` and learning rates `lr` so far, in decimal arithmetic, as in the paper.
* CASES: the hyperparameters that the formula is tried with.
* ORDER: (arguments, what is compared, right, wrong), where two functions of p, g and the states (`s` before the update
  and `n` after it) are the same mathematics in float32. Only the first has the order of operations that gives all bits.
* FAMILY: the panel that shows the optimizer in the pictures.
* TORCH: (arguments, the class of `torch.optim` that makes the same updates, its arguments), or None if it has none.
* TORCH_STATES: what PyTorch calls the states, and the numbers that the rule keeps beside them.

Where there is something to say, also:

* OPTIONS: those options of every optimizer that have another default here.
* ROUNDED: (arguments, state, its value after an update with gradient 1): scalars that are rounded to float32 once.
* LOOPS: (a loop as another document or library writes it, the arguments that make the same updates).
* PARABOLA: (arguments, where 10 updates with the gradient 2x lead from x = 10).
* SCALARS: (arguments, a function that returns an update in the right order of operations on scalars, and in another,
  from lr, t, m, v, g and the memory of the rule).
* VALUES: what a hyperparameter may be in four updates in a row, if it is not a number between 0 and 1.

Functions whose names begin with `test_` test what is special to the optimizer. `test_rules.py` tests all the rest.
"""

from importlib import import_module
from importlib.util import find_spec

from fusedstep.optimizers import classes

NAMES = [cls.__name__ for cls in classes()]
FILES = {name: import_module(f"{__name__}.{name.lower()}") for name in NAMES if find_spec(f"{__name__}.{name.lower()}")}
# The class whose steps are those of a rule, and its arguments: of several classes, the first one.
BY_RULE = {rule: (name, arguments) for name, file in reversed(FILES.items()) for rule, arguments in file.RULES.items()}


def entries(constant):
    """Return the entries of a constant of all files, each behind the name of its optimizer."""
    return [(name, *entry) for name, file in FILES.items() for entry in getattr(file, constant, None) or ()]
