"""Studies of Kronecker-structured sparse Bayesian learning."""
