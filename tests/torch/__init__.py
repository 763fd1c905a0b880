"""The optimizers of `fusedstep.torch` beside those of `torch.optim`."""
