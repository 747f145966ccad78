"""A bar that cannot fail, or a timing of the wrong thing, would make every figure worthless."""

import json
import math

import jax
import numpy as np
import pytest

from benchmarks import common
from benchmarks.__main__ import choose, main
from benchmarks.common import Bar, Options, Report, Table


@pytest.mark.parametrize(
    ("comparison", "below", "equal", "above"),
    [
        ("<", True, False, False),
        ("<=", True, True, False),
        (">", False, False, True),
        (">=", False, True, True),
        ("==", False, True, False),
    ],
)
def test_a_bar_compares(comparison, below, equal, above):
    passed = [Bar("", value, comparison, 2.0).passed for value in (1.0, 2.0, 3.0)]
    assert passed == [below, equal, above]


@pytest.mark.parametrize("comparison", ["<", "<=", ">", ">=", "=="])
def test_a_bar_without_a_number_fails(comparison):
    assert not Bar("", math.nan, comparison, 1.0).passed


def test_a_target_does_not_decide():
    bar = Bar("", 4.0, "<=", 5.0, target=3.0)
    assert bar.passed
    assert bar.target_met is False


def test_an_unknown_comparison_is_refused():
    with pytest.raises(ValueError, match="comparison"):
        Bar("", 1.0, "≤", 2.0)


def test_seeds_asked_for_are_the_seeds():
    assert Options().count(50, 200) == 50
    assert Options(full=True).count(50, 200) == 200
    assert Options(seeds=2).count(50, 200) == 2
    assert Options(full=True, seeds=2).at_most(20, 50) == 2
    assert Options(seeds=30).at_most(20, 50) == 20


def test_functions_are_timed_in_turn_after_a_first_call():
    calls = []
    timings = common.side_by_side(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3
    )
    assert calls == ["a", "b"] * 4
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_within_a_round():
    timings = common.Timings({"slow": [2.0, 30.0, 4.0], "fast": [1.0, 10.0, 1.0]})
    assert timings.ratio("slow", "fast") == 3.0
    assert timings.median("slow") == 4.0


def test_compilations_are_counted_by_name():
    def some_program(x):
        return x + 1

    def another(x):
        return x - 1

    compiled, other = jax.jit(some_program), jax.jit(another)
    with common.compilations("some_program") as names:
        compiled(np.ones(3, np.float32))
        compiled(np.zeros(3, np.float32))
        other(np.ones(3, np.float32))
        compiled(np.ones(4, np.float32))
    assert len(names) == 2


def allocate(megabytes):
    return {"sum": float(np.ones(megabytes * 2**17).sum()), "nothing": math.nan}


def test_peak_memory_is_of_the_called_function_alone():
    here = np.ones(2**26)  # half a gibibyte that the other process must not be charged for
    outcome = common.in_subprocess("tests.benchmarks.test_common:allocate", megabytes=256)
    used = outcome["peak_bytes"] - outcome["base_bytes"]
    assert outcome["result"]["sum"] == 256 * 2**17
    assert math.isnan(outcome["result"]["nothing"])  # a number still, that a bar compares
    assert 250 * 2**20 <= used < 320 * 2**20
    del here


def test_a_failing_subprocess_says_why():
    with pytest.raises(RuntimeError, match="no_such_function"):
        common.in_subprocess("tests.benchmarks.test_common:no_such_function")


def test_reports_are_written_as_json_and_markdown(tmp_path):
    report = Report(
        "A title",
        settings={"seeds": 2},
        tables=[Table("A table", ("a|b", "c"), [(1, np.float64(0.12345)), (None, math.inf)])],
        bars=[Bar("holds", 1.0, "<=", 2.0, target=0.5), Bar("does not", math.nan, "<", 1.0)],
        results={"raw": np.arange(3)},
    )
    common.write(report, "some.study", tmp_path, common.environment(), 1.0)
    content = json.loads((tmp_path / "some.study.json").read_text())
    assert content["passed"] is False
    assert [bar["passed"] for bar in content["bars"]] == [True, False]
    assert content["bars"][0]["target_met"] is False
    assert content["bars"][1]["value"] == "nan"
    assert content["results"]["raw"] == [0, 1, 2]
    page = (tmp_path / "some.study.md").read_text()
    assert "| holds | 1 | <= 2 | pass | <= 0.5 (not met) |" in page
    assert "| does not | nan | < 1 | FAIL | – |" in page
    assert "| 1 | 0.123 |" in page
    assert "| – | inf |" in page
    assert "a\\|b" in page


def test_names_short_family_and_all_choose():
    known = {name: Study([]) for name in ("one.speed", "one.size", "one.long", "two.speed")}
    known["one.long"].MINUTES = (0, 9)
    chosen = choose(["speed", "one", "two.speed", "all", "long", "no"], known, full=False)
    assert chosen["speed"] == ["one.speed", "two.speed"]
    assert chosen["one"] == ["one.speed", "one.size"]
    assert chosen["two.speed"] == ["two.speed"]
    assert chosen["all"] == ["one.speed", "one.size", "two.speed"]
    assert chosen["long"] == ["one.long"]
    assert chosen["no"] == []
    assert choose(["all"], known, full=True)["all"] == list(known)


class Study:
    TITLE, MINUTES, ORDER = "a study", (1, 1), 1

    def __init__(self, bars):
        self.bars = bars

    def run(self, options):
        if self.bars is None:
            raise ArithmeticError("broken")
        return Report(self.TITLE, bars=self.bars)


def test_every_benchmark_runs_and_a_failed_bar_or_an_error_is_the_exit_status(
    monkeypatch, tmp_path, capsys
):
    good, bad = Study([Bar("b", 1.0, "<", 2.0)]), Study([Bar("b", 3.0, "<", 2.0)])
    known = {"a.broken": Study(None), "a.bad": bad, "a.good": good}
    monkeypatch.setattr(common, "benchmarks", lambda: known)
    assert main(["all", "--out", str(tmp_path)]) == 1
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["a.bad.json", "a.good.json"]
    assert "failed: a.broken, a.bad" in capsys.readouterr().out
    assert main(["good", "--out", str(tmp_path)]) == 0
    assert main([]) == 0


def test_an_unknown_name_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(common, "benchmarks", lambda: {"a.good": Study([])})
    with pytest.raises(SystemExit):
        main(["speeed"])
    assert "speeed" in capsys.readouterr().err
