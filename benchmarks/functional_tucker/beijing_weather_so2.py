"""Daily SO2 in Beijing by the paper's three modes, which have no station: held out."""

from benchmarks.common import Options, Report
from benchmarks.functional_tucker.beijing import THREE, study

ORDER = 2.7
TITLE = "SO2 in Beijing by temperature, pressure and time (the paper's modes): held out"
MINUTES = (7, 35)


def run(options: Options) -> Report:
    return study(options, TITLE, "so2", (THREE,))
