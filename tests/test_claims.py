"""Claims: asserted with an interval, printed, entered once, and written only when asked to."""

import doctest
import json

import pytest

from course_lib import claims
from course_lib.studies import PerSeed


@pytest.fixture(autouse=True)
def chapter():
    claims.begin("03_decoder_only", "Pretraining (2)")
    yield
    claims.begin("", "")


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    path = tmp_path / "claims.json"
    monkeypatch.setenv("COURSE_LEDGER", str(path))
    return path


def of_seeds(*values):
    return PerSeed(tuple(range(len(values))), values, "made_up")


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(claims)
    assert result.attempted and not result.failed


def test_an_exact_claim_that_holds_is_printed_and_entered(ledger, capsys):
    claims.claim("Water is wet.", True, {"wetness": 1.0})
    assert capsys.readouterr().out == "claim holds: Water is wet.\nwetness 1.0\n"
    assert json.loads(ledger.read_text(encoding="utf-8")) == [
        {"chapter": "03_decoder_only", "section": "Pretraining (2)", "text": "Water is wet.",
         "evidence": "wetness 1.0"}
    ]  # fmt: skip


def test_the_bound_must_lie_outside_the_interval(ledger, capsys):
    """0 and 2: mean 1, s = √2, t(1) at .995 = 63.657, half-width 63.657 · √2 / √2 = 63.657.

    So "at least .5" does not hold, though the mean is twice that; "at least -63" does.
    """
    claims.claim("It rises.", of_seeds(0.0, 2.0), at_least=-63.0)
    assert capsys.readouterr().out.replace("\n  ", " ") == (
        "claim holds: It rises.\n"
        "1.00 (99 % interval -62.66 to 64.66, 2 seeds), at least -63 (study made_up)\n"
    )
    entry = json.loads(ledger.read_text(encoding="utf-8"))[0]
    assert (entry["mean"], entry["seeds"], entry["at_least"], entry["study"]) == (
        1.0, 2, -63.0, "made_up")  # fmt: skip
    assert entry["low"] == pytest.approx(1 - 63.6567, abs=1e-3)
    with pytest.raises(AssertionError, match="It rises by a half.*at least 0.5"):
        claims.claim("It rises by a half.", of_seeds(0.0, 2.0), at_least=0.5)


@pytest.mark.parametrize(("values", "bounds", "holds"), [
    ((0.3, 0.3, 0.3), {"at_least": 0.2}, True),
    ((0.3, 0.3, 0.3), {"at_least": 0.3}, False),  # on the bound is not outside
    ((0.3, 0.3, 0.3), {"at_most": 0.4}, True),
    ((0.3, 0.3, 0.3), {"at_most": 0.2}, False),
    ((0.3, 0.3, 0.3), {"at_least": 0.2, "at_most": 0.4}, True),
    ((0.3, 0.3, 0.3), {"at_least": 0.2, "at_most": 0.25}, False),
    ((0.1, 0.9, 0.5), {"at_least": 0.3}, False),
])  # fmt: skip
def test_each_bound_on_its_side(values, bounds, holds):
    if holds:
        claims.claim("A.", of_seeds(*values), **bounds)
    else:
        with pytest.raises(AssertionError, match="claim fails: A."):
            claims.claim("A.", of_seeds(*values), **bounds)


def test_a_claim_that_fails_raises_and_enters_nothing(ledger):
    with pytest.raises(AssertionError, match="Pigs fly"):
        claims.claim("Pigs fly.", False, "seen none")
    assert not ledger.exists()


def test_the_same_claim_twice_is_one_entry_and_the_same_bytes(ledger):
    for text in ("B.", "A."):
        claims.claim(text, True, "e")
    before = ledger.read_bytes()
    claims.claim("A.", True, "e")
    assert ledger.read_bytes() == before
    assert [e["text"] for e in json.loads(before)] == ["A.", "B."]


@pytest.mark.parametrize(("arguments", "bounds", "message"), [
    ((True, ""), {}, "without evidence"),
    ((of_seeds(1.0, 2.0),), {}, "numbers and no bound"),
    ((True, "e"), {"at_least": 1}, "give one number a seed"),
    ((of_seeds(1.0),), {"at_least": 0}, "needs two finite values or more"),
    ((of_seeds(1.0, float("nan")),), {"at_least": 0}, "needs two finite values or more"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(arguments, bounds, message):
    with pytest.raises(ValueError, match=message):
        claims.claim("A.", *arguments, **bounds)


def test_no_claim_before_a_chapter_is_begun():
    claims.begin("", "")
    with pytest.raises(ValueError, match="begin"):
        claims.claim("A.", True, "e")


def test_nothing_is_written_where_no_ledger_is_named(tmp_path, monkeypatch):
    """Not in a checkout of the book either: a test run changes no tracked file."""
    monkeypatch.delenv("COURSE_LEDGER", raising=False)
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "book").mkdir()
    monkeypatch.chdir(tmp_path / "book")
    claims.claim("A.", True, "e")
    with pytest.raises(AssertionError):
        claims.claim("B.", False, "e")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["_toc.yml", "book"]


def test_printed_lines_fit_the_page(capsys):
    claims.claim("A long sentence about many things, " * 8, True, "evidence " * 30)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 79
