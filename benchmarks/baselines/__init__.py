"""Fair baselines of our own writing, for comparisons in one run on one machine."""

from benchmarks.baselines.classic_sbl import ClassicSBLResult, classic_sbl
from benchmarks.baselines.fista import FISTAResult, best_fista, fista
from benchmarks.baselines.kronecker_omp import KroneckerOMPResult, kronecker_omp
from benchmarks.baselines.omp import OMPResult, omp
from benchmarks.baselines.oracle import oracle_least_squares

__all__ = [
    "ClassicSBLResult",
    "FISTAResult",
    "KroneckerOMPResult",
    "OMPResult",
    "best_fista",
    "classic_sbl",
    "fista",
    "kronecker_omp",
    "omp",
    "oracle_least_squares",
]
