"""Methods: how a posterior is computed."""

from bayeskit.inference.ascent import EM, MaximumAPosteriori, MessagePassing
from bayeskit.inference.mcmc import MCMC
from bayeskit.inference.semidefinite import SemidefiniteProgram
from bayeskit.inference.variational import VariationalInference

__all__ = [
    "EM",
    "MCMC",
    "MaximumAPosteriori",
    "MessagePassing",
    "SemidefiniteProgram",
    "VariationalInference",
]
