"""Claims: asserted, printed, entered once, and never left half-written."""

import json

import pytest

from course_lib import claims


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "claims.json"
    claims.begin("03_decoder_only", "Pretraining (2)", path)
    yield path
    claims._current.update(chapter="", section="", ledger=None)


def test_a_claim_that_holds_prints_one_stable_line_and_is_entered(ledger, capsys):
    claims.claim("Water is wet.", True, {"wetness": 1.0})
    assert capsys.readouterr().out == "claim holds: Water is wet.\n"
    assert json.loads(ledger.read_text()) == [
        {"chapter": "03_decoder_only", "section": "Pretraining (2)", "text": "Water is wet.",
         "holds": True, "evidence": "wetness 1.0"}
    ]  # fmt: skip


def test_a_claim_that_fails_raises_and_the_ledger_says_so(ledger):
    with pytest.raises(AssertionError, match="Pigs fly"):
        claims.claim("Pigs fly.", False, "seen none")
    assert json.loads(ledger.read_text())[0]["holds"] is False


def test_the_same_claim_twice_is_one_entry_and_the_same_bytes(ledger):
    for text in ("B.", "A."):
        claims.claim(text, True, "e")
    before = ledger.read_bytes()
    claims.claim("A.", True, "e")
    assert ledger.read_bytes() == before
    assert [e["text"] for e in json.loads(before)] == ["A.", "B."]


def test_no_claim_without_evidence_or_chapter(ledger):
    with pytest.raises(ValueError, match="without evidence"):
        claims.claim("A.", True, "")
    claims._current["chapter"] = ""
    with pytest.raises(ValueError, match="begin"):
        claims.claim("A.", True, "e")


def test_elsewhere_than_in_the_book_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    claims.begin("03_decoder_only", "x")
    claims.claim("A.", True, "e")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "book").mkdir()
    monkeypatch.chdir(tmp_path / "book")
    claims.begin("03_decoder_only", "x")
    claims.claim("A.", True, "e")
    assert (tmp_path / "book" / "claims.json").exists()
    claims._current.update(chapter="", section="", ledger=None)
