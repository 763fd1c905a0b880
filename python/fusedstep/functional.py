"""
One function per rule, for callers who own all state.

Every function makes one update in place. It returns None, or, where a rule keeps numbers from update to update, these
numbers, which the next call takes. Arrays are float32, float64, float16 or bfloat16 (of `ml_dtypes`), C-contiguous,
aligned, in native byte order and separate in memory; gradient and states have the shape and dtype of their parameter.
Gradient and states of a half-precision parameter may be float32, as long as the states are all of one dtype, and the
gradient of a float32 parameter may be half precision. In place of each array there may be a list of arrays, one per
tensor: still one call. Everything is checked before the first write.

Arrays on a GPU, of CuPy or with `__cuda_array_interface__`, are updated there, all of a call on one device, in CuPy's
current stream (without CuPy, the default stream); nothing is waited for.

Hyperparameters and options mean what they mean for the classes of optimizers. What has to be remembered between steps,
averages, masters and skipped steps, belongs to the classes alone. The random bits of stochastic rounding follow from
`seed`, t, and the place in the list; a function without t wants another seed for every update.

There is a function for each rule that a class names, made by `fusedstep.core.functions` from that class.

Examples
--------
>>> import numpy as np, fusedstep as fs
>>> p, m, v = np.ones(3), np.zeros(3), np.zeros(3)
>>> for t in range(1, 11):
...     fs.functional.adam(p, 2 * p, m, v, t=t, lr=0.1, weight_decay=0.01)
>>> p.round(3).tolist()
[0.076, 0.076, 0.076]
"""

from fusedstep.core.functions import DecoupledOptions as DecoupledOptions
from fusedstep.core.functions import Options as Options
from fusedstep.core.functions import function as _function
from fusedstep.core.functions import outlines as _outlines

from .optimizers import classes as _classes

__all__ = []
for _outline in _outlines(_classes()):
    globals()[_outline.name] = _function(_outline, __name__)
    __all__ += [_outline.name]
