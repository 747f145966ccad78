"""Daily PM2.5 in Beijing, held out: with stations, beside simpler predictors."""

from benchmarks.common import Options, Report
from benchmarks.functional_tucker.beijing import FOUR, TWO, study

ORDER = 2
TITLE = "PM2.5 in Beijing by time and station, and by all modes: held out"
MINUTES = (8, 40)


def run(options: Options) -> Report:
    return study(options, TITLE, "pm25", (TWO, FOUR))
