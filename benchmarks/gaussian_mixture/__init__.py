"""Studies of Gaussian mixtures."""
