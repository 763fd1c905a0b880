"""
What the optimizers are made of: the step, states by key, hyperparameters, overrides, arrays, files.

The modules of this package are not public; what is public in them can be imported from `fusedstep`.
"""
