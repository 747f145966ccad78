"""Daily air pollution in Beijing by the paper's three modes, which have no station: held out."""

from benchmarks.common import Options, Report
from benchmarks.functional_tucker.beijing import LIMITS, THREE, study

ORDER = 2.5
TITLE = "Beijing air pollution by temperature, pressure and time (the paper's modes): held out"
MINUTES = (20, 100)


def run(options: Options) -> Report:
    return study(options, TITLE, tuple(LIMITS), (THREE,))
