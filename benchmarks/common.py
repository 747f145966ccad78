"""What every benchmark shares: its report, its bars, timing side by side, peak memory."""

import datetime
import hashlib
import importlib
import json
import math
import os
import pkgutil
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).resolve().parent
PARTS = ROOT / "parts"
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
    "==": lambda value, limit: value == limit,
}


@dataclass(frozen=True)
class Options:
    """What the command line asks for: ``full`` sizes, and a number of ``seeds`` if not the own."""

    full: bool = False
    seeds: int | None = None

    def count(self, default: int, full: int | None = None) -> int:
        """Number of seeds: as asked for, or the study's own."""
        if self.seeds is not None:
            return self.seeds
        return full if self.full and full is not None else default

    def at_most(self, default: int, full: int | None = None) -> int:
        """Number of seeds of a slow part: its own, or fewer where fewer are asked for."""
        own = full if self.full and full is not None else default
        return own if self.seeds is None else min(own, self.seeds)


@dataclass(frozen=True)
class Bar:
    """What must hold: ``value comparison limit``; a value that is no number does not hold."""

    name: str
    value: float
    comparison: str
    limit: float
    target: float | None = None

    def __post_init__(self):
        if self.comparison not in _COMPARISONS:
            raise ValueError(f"comparison: got {self.comparison!r}; expected {list(_COMPARISONS)}")

    @property
    def passed(self) -> bool:
        return bool(_COMPARISONS[self.comparison](float(self.value), float(self.limit)))

    @property
    def target_met(self) -> bool | None:
        if self.target is None:
            return None
        return bool(_COMPARISONS[self.comparison](float(self.value), float(self.target)))


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under named columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass
class Report:
    """What a benchmark found."""

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(bar.passed for bar in self.bars)


def benchmarks() -> dict[str, ModuleType]:
    """Every module of a sub-package of ``benchmarks`` that has a ``TITLE`` and a ``run``."""
    found = {}
    for package in pkgutil.iter_modules([str(ROOT)]):
        if not package.ispkg:
            continue
        for module in pkgutil.iter_modules([str(ROOT / package.name)]):
            name = f"{package.name}.{module.name}"
            loaded = importlib.import_module(f"benchmarks.{name}")
            if hasattr(loaded, "TITLE") and hasattr(loaded, "run"):
                found[name] = loaded
    return dict(sorted(found.items(), key=lambda item: (item[0].split(".")[0], item[1].ORDER)))


# Timing and memory


@dataclass(frozen=True)
class Timings:
    """Seconds of several functions called in turn, one list a function in the same rounds."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """Median over rounds of the ratio within a round: what slows a whole round cancels."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return statistics.median(s / f for s, f in pairs)


def stopwatch(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the results of one call are computed, and the results."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def side_by_side(functions: Mapping[str, Callable[[], Any]], rounds: int) -> Timings:
    """Time functions in turn, round after round, each called once before (compiled, warm)."""
    for function in functions.values():
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(stopwatch(function)[0])
    return Timings(seconds)


def in_subprocess(
    target: str, environment: Mapping[str, str] | None = None, **arguments: Any
) -> dict[str, Any]:
    """Call ``"module:function"`` in a fresh process, with additions to the environment.

    Returns its ``result`` (anything JSON holds), its ``peak_bytes`` and the ``base_bytes`` that
    the imports alone had taken.
    """
    command = [sys.executable, "-m", "benchmarks.worker", target, json.dumps(arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        env=os.environ | dict(environment or {}),
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{target} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_two_processes(target: str, arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Results of ``"module:function"`` for several arguments, two processes at a time.

    Every process gets an equal share of the machine's cores, so that only rough times mean
    something. Results are kept in a folder by commit, machine and versions, so that a study that
    was interrupted goes on where it was; nothing is kept with uncommitted changes.
    """
    surroundings = environment()
    machine = [surroundings[name] for name in ("processor", "cores", "device", "jax", "numpy")]

    def folder():
        commit = _git("rev-parse", "HEAD")
        return PARTS / commit if commit and not _uncommitted_changes() else None

    kept = folder()

    def one(each):
        identity = json.dumps([target, each, machine], sort_keys=True)
        name = hashlib.sha256(identity.encode()).hexdigest()
        file = None if kept is None else kept / f"{name}.json"
        if file is not None and file.exists():
            return json.loads(file.read_text())
        result = in_subprocess(target, share, **each)["result"]
        if file is not None and folder() == kept:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(result))
            part.replace(file)
        return result

    # Threads of two libraries of linear algebra on the same cores wait for each other.
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    share = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), threads)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, arguments))


def peak_bytes() -> int:
    """Largest resident memory that this process has had."""
    # ru_maxrss keeps the peak of the process that started this one: the kernel carries it over
    # when a program is replaced by another. VmHWM is of the program's own memory.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def compilations(containing: str) -> Iterator[list[str]]:
    """Collect the names of compiled programs whose name contains a text."""
    import logging

    names: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if message.startswith("Compiling ") and containing in message.split(" with ")[0]:
                names.append(message.split()[1])

    logger, collector = logging.getLogger("jax"), Collector(logging.DEBUG)
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers[:]
    logger.handlers, logger.propagate = [collector], False
    try:
        with jax.log_compiles(True):
            yield names
    finally:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


# Numbers


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def quantile(values: Sequence[float], level: float) -> float:
    return float(np.quantile(values, level))


def share(condition: Any) -> float:
    """Fraction of true entries."""
    return float(np.mean(np.asarray(condition, dtype=bool)))


def relative_error(value: Any, reference: Any) -> float:
    """``max |value − reference| / max |reference|``, in the precision of the reference."""
    value, reference = np.asarray(value), np.asarray(reference)
    return float(np.max(np.abs(value - reference)) / np.max(np.abs(reference)))


# Files


def environment() -> dict[str, Any]:
    """Where and with what the figures were obtained."""
    devices = jax.devices()
    return {
        "commit": _git("rev-parse", "HEAD"),
        # Results themselves do not count: a run of several studies writes them one by one.
        "uncommitted_changes": _uncommitted_changes(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "processor": _processor(),
        "device": f"{len(devices)} × {devices[0].device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }


def _uncommitted_changes() -> bool:
    return bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results"))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, cwd=ROOT, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def write(report: Report, name: str, folder: Path, surroundings: dict, seconds: float) -> None:
    """Write ``NAME.json`` and ``NAME.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": name,
        "title": report.title,
        "passed": report.passed,
        "environment": surroundings,
        "seconds": round(seconds, 1),
        "settings": report.settings,
        "bars": [
            {
                "name": bar.name,
                "value": bar.value,
                "comparison": bar.comparison,
                "limit": bar.limit,
                "passed": bar.passed,
                "target": bar.target,
                "target_met": bar.target_met,
            }
            for bar in report.bars
        ],
        "tables": [
            {"title": t.title, "columns": t.columns, "rows": t.rows, "note": t.note}
            for t in report.tables
        ],
        "notes": report.notes,
        "results": report.results,
    }
    text = json.dumps(plain(content, named=True), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown(report, surroundings, seconds), encoding="utf-8")


def plain(value: Any, named: bool = False) -> Any:
    """Only what JSON holds; on request a number that is not finite becomes its name.

    Python's own JSON reads and writes such numbers, the standard has none.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, named) for key, item in value.items()}
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return str(float(value)) if named and not math.isfinite(value) else float(value)
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), named)
    if isinstance(value, (list, tuple)):
        return [plain(item, named) for item in value]
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def text_of(value: Any) -> str:
    """A cell of a table: three digits, and a dash where there is nothing."""
    if value is None:
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            return str(float(value))
        if value == int(value) and abs(value) < 1e6:
            return str(int(value))
        return f"{value:.3g}"
    return str(value)


def bar_table(report: Report) -> Table:
    rows = []
    for bar in report.bars:
        target = "–" if bar.target is None else f"{bar.comparison} {text_of(bar.target)}"
        if bar.target_met is not None:
            target += " (met)" if bar.target_met else " (not met)"
        limit = f"{bar.comparison} {text_of(bar.limit)}"
        # A digit more than elsewhere: 1.006 is not 1.01.
        value = f"{bar.value:.4g}" if isinstance(bar.value, float) else bar.value
        rows.append((bar.name, value, limit, "pass" if bar.passed else "FAIL", target))
    return Table("Bars", ("what must hold", "value", "bar", "", "target"), rows)


def markdown(report: Report, surroundings: dict, seconds: float) -> str:
    """The page that the documentation includes; it has no headings of its own."""
    tables = [bar_table(report)] if report.bars else []
    lines = [f"**{report.title}**", ""]
    for table in [*tables, *report.tables]:
        lines += [f"*{table.title}*", ""]
        lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in table.columns) + " |")
        lines.append("| " + " | ".join("---" for _ in table.columns) + " |")
        for row in table.rows:
            lines.append("| " + " | ".join(text_of(v).replace("|", "\\|") for v in row) + " |")
        lines.append("")
        if table.note:
            lines += [table.note, ""]
    for note in report.notes:
        lines += [note, ""]
    changed = ", with uncommitted changes" if surroundings["uncommitted_changes"] else ""
    settings = ", ".join(f"{key} {text_of(v)}" for key, v in report.settings.items())
    lines.append(
        f"Commit {surroundings['commit'][:12]}{changed}; {surroundings['date']}; "
        f"{surroundings['processor']}, {surroundings['cores']} cores, load average "
        f"{surroundings['load_average']} at the start; {surroundings['device']}; "
        f"JAX {surroundings['jax']}, NumPy {surroundings['numpy']}, Python "
        f"{surroundings['python']}; {seconds:.0f} s in all. Settings: {settings}."
    )
    return "\n".join(lines) + "\n"
