"""Statement of problems with partial differential equations."""

from bayeskit.pde.conditions import Dirichlet, Initial, Neumann, Periodic, Robin
from bayeskit.pde.field import Field, divergence
from bayeskit.pde.problem import PDE
from bayeskit.pde.sensors import Sensors
from bayeskit.pde.unknown import Unknown

__all__ = [
    "PDE",
    "Dirichlet",
    "Field",
    "Initial",
    "Neumann",
    "Periodic",
    "Robin",
    "Sensors",
    "Unknown",
    "divergence",
]
