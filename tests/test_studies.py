"""Studies: rows kept as they end, stale results told, predictions that can fail."""

import json
import math
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import toy_study

from course_lib.studies import __main__ as command
from course_lib.studies import load, running, stored

ROOT = Path(__file__).resolve().parents[1]
NAMES = running.names()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "RESULTS", tmp_path)
    return tmp_path


def changed(study, **names):
    """A copy of a study's module with other contents, as if its file had been edited."""
    copy = types.ModuleType(study.__name__)
    copy.__dict__.update({**study.__dict__, **names})
    return copy


# --- the runner ---------------------------------------------------------------------------------


def test_rows_are_stored_with_what_they_came_from(folder):
    rows = list(running.run_missing(toy_study))
    assert sorted((r["setting"], r["seed"]) for r in rows) == sorted(running.grid(toy_study))
    results = stored.read("toy_study", (folder / "toy_study.json").read_text(encoding="utf-8"))
    assert results.of("large", "value").values == (10.0, 10.1, 10.2, 10.3)
    assert results.about["models"]["base"] and results.about["digest"] == running.digest(toy_study)
    assert {"versions", "processor", "seconds"} <= set(results.about)
    assert running.state(toy_study) == "complete" and not running.missing(toy_study)
    assert [p.name for p in folder.iterdir()] == ["toy_study.json"]


def test_a_killed_run_goes_on_where_it_was(folder):
    """SIGKILL after the first rows: they are kept, only the others are run, the end is the same."""
    (folder / "slow").touch()
    code = ("from course_lib.studies import running; import toy_study, pathlib\n"
            "running.RESULTS = pathlib.Path('.')\n"
            "for row in running.run_missing(toy_study, 1): print(row['seed'], flush=True)")
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )  # fmt: skip
    assert child.stdout.readline() and child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    (folder / "slow").unlink()
    kept = len(running.kept_rows(toy_study))
    assert kept in (2, 3)
    assert "rows missing" in running.state(toy_study) and not (folder / "toy_study.json").exists()
    ran = len(list(running.run_missing(toy_study, 1)))
    assert ran == len(running.grid(toy_study)) - kept
    results = stored.read("toy_study", (folder / "toy_study.json").read_text(encoding="utf-8"))
    assert results.of("small", "value").values == (1.0, 1.1, 1.2, 1.3)


def test_results_of_other_code_or_models_are_stale(folder, monkeypatch):
    list(running.run_missing(toy_study, 1))
    for other in (
        changed(toy_study, USES=(toy_study.run,)),
        changed(toy_study, MODELS=("instruct",)),
    ):
        assert running.state(other) == "8 of 8 rows missing, results are stale"
    wider = changed(toy_study, SEEDS=range(5))
    assert running.missing(wider) == [("small", 4), ("large", 4)], "what fits is not run again"


def test_the_digest_reads_code_and_not_remarks(monkeypatch):
    """A comment, an empty line, the docstring of the module, the figure and what is checked may
    change; a number in ``run`` or in a function that the study names may not."""
    source = Path(toy_study.__file__).read_text(encoding="utf-8")
    real = running.inspect.getsource

    def digest_of(text):
        def getsource(thing):
            return text if thing is toy_study else real(thing)

        monkeypatch.setattr(running.inspect, "getsource", getsource)
        return running.digest(toy_study)

    now = digest_of(source)
    assert digest_of(source.replace("\n\n\ndef run", "\n\n# Here it comes.\n\n\ndef run")) == now
    assert digest_of(source.replace("A study of nothing", "Another")) == now
    assert digest_of(source.replace("seed / 10", "seed / 11")) != now
    assert digest_of(source.replace('"size": 10}', '"size": 11}')) != now
    assert digest_of(source.replace("    return results.settings", "    return 1")) == now
    assert '("value",)}' in source
    assert digest_of(source.replace('("value",)}', '("other",)}\nLEAST_SPREAD = {}')) == now


def test_a_least_spread_that_is_not_the_stored_one_is_told_and_runs_no_row(folder):
    """The reader of the results takes it from their file, so the file has to be written again."""
    list(running.run_missing(toy_study, 1))
    wider = changed(toy_study, LEAST_SPREAD={"value": 0.5})
    assert running.state(wider) == "LEAST_SPREAD is not the stored one"
    assert not list(running.run_missing(wider, 1)) and running.state(wider) == "complete"
    results = stored.read("toy_study", (folder / "toy_study.json").read_text(encoding="utf-8"))
    assert results.least_spread("value") == 0.5 and len(results.of("large", "value")) == 4


def test_a_row_that_fails_is_told_and_the_others_are_kept(folder):
    broken = changed(toy_study, GRID={**toy_study.GRID, "broken": {}})
    with pytest.raises(KeyError):  # the child runs the module as it is on disk: no such setting
        list(running.run_missing(broken, 1))
    assert running.kept_rows(toy_study)


# --- the command --------------------------------------------------------------------------------


def test_the_command_names_what_there_is(capsys):
    with pytest.raises(SystemExit):
        command.main(["no_such_study"])
    assert "There is no study 'no_such_study'. There are: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--processes", "0"])
    assert "at least 1, got 0" in capsys.readouterr().err


def test_list_says_which_are_complete(capsys):
    command.main(["--list"])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == NAMES


# --- results ------------------------------------------------------------------------------------


def results_of(least_spread=(), **columns):
    rows = [{"setting": s, "seed": i, "measures": {"m": v}}
            for s, values in columns.items() for i, v in enumerate(values)]  # fmt: skip
    return stored.read("made_up", json.dumps({"least_spread": dict(least_spread), "rows": rows}))


def test_gaps_are_taken_seed_by_seed():
    """a - b = .3, .1: the mean is .2, and each seed keeps its own."""
    results = results_of(a=[0.5, 0.9], b=[0.2, 0.8])
    gap = results.gap("a", "b", "m")
    assert gap.values == pytest.approx((0.3, 0.1)) and gap.mean == pytest.approx(0.2)
    assert (gap * 2 + 1).values == pytest.approx((1.6, 1.2))
    assert (results.of("a", "m") / results.of("b", "m")).values == pytest.approx((2.5, 1.125))
    with pytest.raises(ValueError, match=r"Seeds \(0, 1\) and \(0,\) cannot be paired"):
        _ = gap - results_of(c=[1.0]).of("c", "m")


@pytest.mark.parametrize(("setting", "measure", "message"), [
    ("c", "m", "has no setting 'c', only"), ("a", "n", "has no measure 'n'"),
])  # fmt: skip
def test_what_is_not_there_is_named(setting, measure, message):
    with pytest.raises(ValueError, match=message):
        results_of(a=[1.0]).of(setting, measure)


def test_a_live_run_must_lie_where_the_study_predicts(capsys):
    """Eight seeds with s = .02 about .5: .52 is one more of them, .9 is something else."""
    results = results_of(a=[0.48, 0.52] * 4)
    results.check_live("a", {"m": 0.52})
    assert capsys.readouterr().out == "as the study made_up predicts: m\n"
    with pytest.raises(AssertionError, match="m of 'a' is 0.9; the study made_up predicts"):
        results.check_live("a", {"m": 0.9})
    with pytest.raises(AssertionError):
        results.check_live("a", {"m": math.nan})


def test_equal_seeds_predict_no_more_than_the_least_spread_says():
    """Eight seeds that are all 1 have no spread: .99 fails, but where one is granted."""
    with pytest.raises(AssertionError):
        results_of(a=[1.0] * 8).check_live("a", {"m": 0.99})
    granted = results_of({"m": 0.01}, a=[1.0] * 8)
    granted.check_live("a", {"m": 0.99})
    with pytest.raises(AssertionError):
        granted.check_live("a", {"m": 0.8})


def test_a_study_without_results_says_how_to_run_it():
    with pytest.raises(FileNotFoundError, match="run python -m course_lib.studies no_such"):
        load("no_such")


def test_a_mean_that_is_no_longer_the_same_is_told():
    """0 and 2 eight times each: s = 1.033, t(15) at .0005 = 4.07, so means may differ by
    √2 · 4.07 · 1.033 / 4 = 1.49."""
    before = results_of(a=[0.0, 2.0] * 8)
    assert not running.unlike(before, results_of(a=[1.0, 3.0] * 8))
    assert running.unlike(before, results_of(a=[2.0, 4.0] * 8)) == ["a, m: 1 stored, 3 now"]
    assert running.unlike(before, results_of(a=[math.nan] * 16))
    equal = results_of({"m": 0.1}, a=[1.0] * 8)
    assert not running.unlike(equal, results_of(a=[0.95] * 8))
    assert running.unlike(equal, results_of(a=[0.8] * 8))


# --- every study --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_study_is_whole_and_not_stale(name):
    study = running.module_of(name)
    assert running.state(study) == "complete", "run python -m course_lib.studies"
    assert len(study.SEEDS) >= 5 and study.USES
    results = load(name)
    assert results.settings == list(study.GRID)
    if len(study.SEEDS) < 8:  # five are allowed where a row costs over two minutes
        assert results.about["seconds"] / len(running.grid(study)) > 120
    for setting, measures in study.CHECKS.items():
        assert setting in study.GRID and measures
        for measure in measures:
            results.of(setting, measure)


@pytest.mark.parametrize("name", NAMES)
def test_the_code_of_each_study_is_checked(name):
    """By its own cheap rows, or by those of a study that runs all that this one names; then a row
    of its own costs 15 seconds and more."""
    study = running.module_of(name)
    if not study.CHECKS:
        other = running.module_of(study.CHECKED_BY)
        assert other.CHECKS and set(study.USES) <= set(other.USES)
        assert load(name).about["seconds"] / len(running.grid(study)) > 15


def test_there_are_not_more_checks_than_the_false_alarms_were_divided_by():
    """Each check runs in a notebook and in the test below."""
    checks = sum(len(m) for n in NAMES for m in running.module_of(n).CHECKS.values())
    assert 2 * checks <= stored.CHECKS_IN_A_RUN


@pytest.mark.parametrize("name", NAMES)
def test_one_more_seed_is_what_the_study_predicts(name):
    """The cheap rows of every study again, with a seed that it has not seen."""
    study = running.module_of(name)
    for setting, measures in study.CHECKS.items():
        measured = running.run_row(study.__name__, setting, max(study.SEEDS) + 1)["measures"]
        load(name).check_live(setting, {measure: measured[measure] for measure in measures})
