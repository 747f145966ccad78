"""Daily PM2.5 in Beijing, held out: with stations, beside simpler predictors."""

from benchmarks.common import Options, Report
from benchmarks.functional_tucker.beijing import study

ORDER = 2
TITLE = "PM2.5 in Beijing by time and station, by the paper's modes, and by all: held out"
MINUTES = (8, 30)


def run(options: Options) -> Report:
    return study(options, TITLE, "pm25")
