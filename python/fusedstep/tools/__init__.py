"""Programs around the optimizers: verify, bench, plot and demo, as `python -m fusedstep` runs them."""
