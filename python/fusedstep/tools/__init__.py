"""The programs behind `python -m fusedstep`: verify, bench, demo and plot. The optimizers need none of them."""
