"""
What the optimizers are made of: the step, states by key, hyperparameters, arrays, files.

Nothing here is public by itself; what is public is imported by the package.
"""
