"""Statement of problems with partial differential equations."""

from bayeskit.pde.conditions import Dirichlet, Initial, Neumann, Periodic, Robin
from bayeskit.pde.field import Field, divergence
from bayeskit.pde.problem import PDE

__all__ = [
    "PDE",
    "Dirichlet",
    "Field",
    "Initial",
    "Neumann",
    "Periodic",
    "Robin",
    "divergence",
]
