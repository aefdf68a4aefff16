"""Training: the loop, its data, its callbacks, and the files that models are saved in."""
