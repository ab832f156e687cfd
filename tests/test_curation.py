"""The crawl filter: every rule at its edge, duplicates against exact Jaccard, the whole funnel."""

import json
import random
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("resiliparse", reason="needs the extra `curation`")

from course_lib.curation import (
    Contamination,
    Document,
    DuplicateIndex,
    Funnel,
    back,
    band_keys,
    curate,
    evaluation_items,
    front,
    leak_texts,
    main_text,
    samples,
    shingles,
)
from course_lib.curation.duplicates import BANDS, ROWS
from course_lib.curation.pipeline import language
from course_lib.curation.quality import (
    C4_RULES,
    GOPHER_RULES,
    c4,
    clean_lines,
    duplicate_ngram_share,
    gopher,
    sentences,
    top_ngram_share,
)
from course_lib.curation.report import Tally, _front_shards, run, stored
from course_lib.world.crawl import MIX, Truth, crawl
from course_lib.world.documents import KINDS
from course_lib.world.foreign import SHARES, foreign_paragraph
from course_lib.world.sites import SITES, site

ROOT = Path(__file__).resolve().parents[1]
fixed = settings(deadline=None, derandomize=True, max_examples=60)


# --- rules --------------------------------------------------------------------------------------

X = ["word"]


def again(n: int, total: int) -> list[str]:
    """``total`` words of three letters, all different but that the last n are the first n again."""
    return [f"w{i:02d}" for i in (*range(total - n), *range(n))]


EDGES = {
    # name: (words, lines) that just pass, (words, lines) that just fail
    "few words": ((X * 50, X), (X * 49, X)),
    "word length": ((["abc"] * 60, X), (["abc"] * 59 + ["ab"], X)),
    "symbols": ((X * 90 + ["#"] * 10, X), (X * 89 + ["#"] * 11, X)),
    "bullets": ((X, ["- a"] * 9 + ["a"]), (X, ["- a"] * 10)),
    "ellipses": ((X, ["a..."] * 3 + ["a."] * 7), (X, ["a..."] * 4 + ["a."] * 6)),
    "no letters": ((X * 80 + ["12"] * 20, X), (X * 79 + ["12"] * 21, X)),
    "stop words": ((["The", "cat", "of"], X), (["The", "cat", "the"], X)),
    "repeated lines": ((X, list("abcdefg") + ["a"] * 3), (X, list("abcdef") + ["a"] * 4)),
    # "a b" twice is 4 of 20 characters (0.20), then 4 of 19
    "repeated phrase": ((list("abcdefghijabklmnopqr"), X), (list("abcdefghijabklmnopq"), X)),
    # one of three lines has come before, 2 of 10 characters, then 2 of 9
    "text of repeated lines": ((X, ["ab", "ab", "cdefgh"]), (X, ["ab", "ab", "cdefg"])),
    # the first ten words come again at the end: 10 of 100 equally long words, then 10 of 99
    "repeated n-grams": ((again(10, 100), X), (again(10, 99), X)),
}


@pytest.mark.parametrize("name", GOPHER_RULES)
def test_gopher_rules_at_their_edges(name):
    passes, fails = EDGES[name]
    assert not GOPHER_RULES[name](*passes)
    assert GOPHER_RULES[name](*fails)


def test_long_words_are_as_bad_as_short_ones():
    assert not GOPHER_RULES["word length"](["abcdefghij"] * 60, X)
    assert GOPHER_RULES["word length"](["abcdefghij"] * 59 + ["abcdefghijk"], X)


@pytest.mark.parametrize("n,passes", [(5, 34), (6, 43), (7, 54), (8, 67), (9, 82), (10, 100)])
def test_each_length_of_repeated_ngrams_has_its_own_limit(n, passes):
    """n repeated words of N equally long ones are a share n/N of all m-grams with m <= n. The
    limits 0.15 to 0.10 fall with n, so only the limit of n itself is met: 5/34 = 0.147 and 5/33 =
    0.152 about 0.15; 6/43, 6/42 about 0.14; 7/54, 7/53 about 0.13; 8/67, 8/66 about 0.12; 9/82,
    9/81 about 0.11; 10/100, 10/99 about 0.10."""
    assert not GOPHER_RULES["repeated n-grams"](again(n, passes), X)
    assert GOPHER_RULES["repeated n-grams"](again(n, passes - 1), X)


def test_gopher_names_the_first_broken_rule():
    """The story has 60 words; without its stop words it is a word list."""
    nouns = " ".join(f"{a}{b}ing" for a in "bdfgkl" for b in ("a", "e", "i", "o", "u"))
    good = f"the cat of {nouns} sat with {nouns.upper()} and slept."
    assert gopher(good) is None
    assert gopher(good.replace("the", "a").replace("of", "a").replace("with", "a")
                  .replace("and", "a")) == "stop words"  # fmt: skip
    assert gopher("the cat of the house.") == "few words"
    assert gopher("") == "few words"


def test_ngram_shares_by_hand():
    """ "a b c a b c a": the top 2-gram "a b" comes twice: 4 of 7 characters. Of its 3-grams "a b c"
    and "b c a" come again at words 3-5 and 4-6; the words 3 to 6 are covered once: 4 of 7."""
    words = list("abcabca")
    assert top_ngram_share(words, 2) == pytest.approx(4 / 7)
    assert duplicate_ngram_share(words, 3) == pytest.approx(4 / 7)
    assert top_ngram_share(list("abcdef"), 2) == 0  # most frequent, but only once
    assert duplicate_ngram_share(list("abc"), 10) == top_ngram_share([], 2) == 0


PROSE = "The cat sat on the mat. It was warm. Nobody came."


def test_c4_rules_at_their_edges():
    assert c4(PROSE) == (PROSE, None)
    assert c4("The cat sat on the mat. It was warm.")[1] == "sentences"
    assert c4(PROSE + " {")[1] == "curly bracket"
    assert c4(PROSE + " Lorem Ipsum dolor.")[1] == "lorem ipsum"
    assert c4(PROSE + " The word lorem alone is no filler.")[1] is None
    assert set(C4_RULES) == {"curly bracket", "lorem ipsum"}


def test_c4_keeps_lines_that_end_like_sentences():
    text = 'Home\nThe cat sat.\nIs it "mine"\n"Yes."\nRead more...\nWhat?\nGo!\n- a list item'
    assert clean_lines(text) == 'The cat sat.\nIs it "mine"\n"Yes."\nWhat?\nGo!'
    assert clean_lines("We use cookies.\nRead our Privacy Policy.\nEnable JavaScript now.") == ""


def test_sentences_are_counted_once():
    assert sentences("Wait... What?! Yes. and the rest") == 3
    assert sentences("") == sentences("...") == 0


@given(st.text(alphabet="a.!? \n\u00a0\x1c", max_size=30))
@settings(fixed, max_examples=500)
def test_sentences_are_those_of_the_search(text):
    """The slow reference: something that is no space, up to and with the marks behind it."""
    assert sentences(text) == len(re.findall(r"[^.!?\s][^.!?]*[.!?]+", text))


# --- extraction and language --------------------------------------------------------------------


def test_main_text_leaves_out_what_surrounds_it():
    page = next(p for p in crawl(0, 500) if p.truth.kind == "article")
    text = main_text(page.html)
    for line in page.truth.text.split("\n"):
        assert line in text
    for foreign in ("window.", "cookie", "Copyright", "Newsletter", "<p>", "padding"):
        assert foreign not in text
    assert main_text("") == "" == main_text("<html></html>")


@pytest.mark.parametrize("code", SHARES)
def test_languages_are_told_apart(code):
    rng = random.Random(0)
    assert all(language(foreign_paragraph(code, rng) * 2) == code for _ in range(20))


def test_english_is_english():
    rng = random.Random(0)
    for kind in ("stories", "reviews", "biographies", "dialogues"):
        hits = [language("\n".join(KINDS[kind](rng) for _ in range(3))) == "en" for _ in range(40)]
        assert sum(hits) >= 39, kind


# --- near-duplicates ----------------------------------------------------------------------------


def pair(rng: random.Random, changed: int, words: int = 200) -> tuple[str, str, float]:
    """Two texts that differ in their last ``changed`` words, and their exact Jaccard similarity.

    With n - 4 shingles each, shared = n - 4 - changed: J = shared / (2 (n - 4) - shared).
    """
    names = [f"w{rng.randrange(10**9)}" for _ in range(words + changed)]
    a, b = names[:words], names[: words - changed] + names[words:]
    one, two = shingles(" ".join(a)), shingles(" ".join(b))
    exact = len(one & two) / len(one | two)
    shared = words - 4 - changed
    assert exact == pytest.approx(shared / (2 * (words - 4) - shared))
    return " ".join(a), " ".join(b), exact


def collide(a: str, b: str) -> bool:
    index = DuplicateIndex()
    assert index.is_new(band_keys(a))
    return not index.is_new(band_keys(b))


def test_shingles_by_hand():
    assert shingles("The cat sat; on the MAT.") == {"the cat sat on the", "cat sat on the mat"}
    assert shingles("Too short") == {"too short"}


@given(seed=st.integers(0, 10**6), changed=st.integers(0, 8))
@fixed
def test_pairs_above_the_threshold_are_found(seed, changed):
    """8 of 196 shingles: J = 188 / 204 = 0.92; missed with probability (1 - .92^6)^18 = 5e-8."""
    a, b, exact = pair(random.Random(seed), changed)
    assert exact > 0.92 and collide(a, b)


@given(seed=st.integers(0, 10**6), changed=st.integers(140, 196))
@fixed
def test_pairs_below_the_threshold_are_not(seed, changed):
    """140 of 196: J = 56 / 336 = 0.17; met with probability 18 x .17^6 = 4e-4 at most."""
    a, b, exact = pair(random.Random(seed), changed)
    assert exact < 0.17 and not collide(a, b)


def test_the_s_curve_between():
    """52 of 196: J = 144/248 = 0.581, found with 1 - (1 - .581^6)^18 = 0.505; with bands and rows
    exchanged 0.0003, with FineWeb's 14 bands of 8 0.17. Four deviations of 300 pairs are 0.115."""
    rng = random.Random(0)
    found = [collide(*pair(rng, 52)[:2]) for _ in range(300)]
    exact = pair(rng, 52)[2]
    expected = 1 - (1 - exact**ROWS) ** BANDS
    assert expected == pytest.approx(0.505, abs=0.005)
    assert abs(sum(found) / 300 - expected) < 0.115


def test_signatures_agree_with_the_librarys_own_index():
    """rensa's RMinHashLSH with the same bands meets the same pairs."""
    from rensa import RMinHash, RMinHashLSH

    rng = random.Random(1)
    for changed in (0, 10, 30, 40, 60, 120):
        for _ in range(10):
            a, b, _ = pair(rng, changed)
            hashes = []
            for text in (a, b):
                h = RMinHash(num_perm=BANDS * ROWS, seed=1)
                h.update(sorted(shingles(text)))
                hashes.append(h)
            index = RMinHashLSH(threshold=0.7, num_perm=BANDS * ROWS, num_bands=BANDS)
            index.insert(0, hashes[0])
            assert (index.query(hashes[1]) == [0]) == collide(a, b)


def test_keys_do_not_depend_on_the_process():
    code = "from course_lib.curation import band_keys; print(band_keys('one two three four five'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                         env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert out.stdout.strip() == str(band_keys("one two three four five")), out.stderr


def test_the_index_keeps_the_first_and_counts_its_memory():
    index = DuplicateIndex()
    assert index.is_new((1, 2, 3)) and not index.is_new((9, 2, 8)) and index.is_new((9, 8, 7))
    big = DuplicateIndex()
    rng = random.Random(0)
    for _ in range(5000):
        big.is_new(tuple(rng.getrandbits(60) for _ in range(BANDS)))
    assert 0.5 < big.megabytes * 1e6 / 5000 / 1000 < 1.6  # kB a page


# --- evaluation items ---------------------------------------------------------------------------

LONG = " ".join(f"word{i}" for i in range(14))


def test_thirteen_words_in_a_row_are_contamination_and_twelve_are_not():
    items = Contamination([LONG])
    words = LONG.split()
    assert items.found_in("before " + " ".join(words[1:14]).upper() + ", after")
    assert not items.found_in(" ".join(words[:12]) + " other " + " ".join(words[2:14]))


def test_a_short_question_counts_as_a_line_or_a_sentence():
    items = Contamination(["Q: Where does Mia live?\nA:"])
    for text in (
        "Q: Where does Mia live?\nA: Oakby", "x\nwhere does MIA live\ny",
        "She asked. Where does Mia live? He knew.", "Question: Where does Mia live?",
    ):  # fmt: skip
        assert items.found_in(text), text
    for text in ("Where does Tom live?", "Tell me where does Mia live", "Mia lives in Oakby."):
        assert not items.found_in(text), text


def test_signs_tell_sums_apart():
    items = Contamination(["Q: 12 + 3\nA:"])
    assert items.found_in("Q: 12 + 3\nA: 15") and not items.found_in("Q: 12 - 3\nA: 9")


@pytest.fixture(scope="module")
def items():
    return evaluation_items(0, 20)


def test_every_leak_is_recognised(items):
    contamination = Contamination(item.query for item in items)
    leaks = leak_texts(items)
    assert len(leaks) > 100
    assert all(contamination.found_in(f"Some story.\n{leak}\nThe end.") for leak in leaks)


def test_items_are_those_of_the_evaluation(items, monkeypatch):
    """``evaluate`` scores these very prompts: its ``accuracy`` is replaced by a recorder."""
    from course_lib.world import evaluate as module

    seen = []
    monkeypatch.setattr(module, "accuracy", lambda m, t, drawn: seen.extend(drawn) or 0.0)

    class Model:
        def eval(self):
            return self

    module.evaluate(Model(), None, seed=0, items=20, progress=False)
    assert seen == items


# --- the pipeline -------------------------------------------------------------------------------

PAGES = 3000


@pytest.fixture(scope="module")
def filtered(items):
    funnel, contamination = Funnel(), Contamination(item.query for item in items)
    pages = crawl(0, PAGES, leak_texts(items))
    return list(curate(pages, funnel, contamination)), funnel, contamination


STAGES = ["crawled", "whole", "main text", "English", "C4 rules", "Gopher rules", "unique",
          "personal data masked", "decontaminated"]  # fmt: skip


def test_the_counts_add_up(filtered):
    documents, funnel, _ = filtered
    rows = funnel.rows()
    assert [row["stage"] for row in rows] == STAGES
    assert rows[0]["pages"] == PAGES and rows[-1]["pages"] == len(documents)
    assert rows[-1]["characters"] == sum(len(d.text) for d in documents)
    for row, kinds in zip(rows, funnel.pages.values(), strict=True):
        assert row["pages"] == sum(kinds.values()) and row["wanted"] == kinds["article"]
        assert row["kept"] == row["pages"] / PAGES
    for before, after in zip(funnel.pages.values(), list(funnel.pages.values())[1:]):
        assert all(after[kind] <= before[kind] for kind in MIX)
    by_rule = Counter()
    for reason, count in funnel.dropped.items():
        by_rule[reason.split(":")[0]] += count
    pages = {row["stage"]: row["pages"] for row in rows}
    assert by_rule["C4"] == pages["English"] - pages["C4 rules"]
    assert by_rule["Gopher"] == pages["C4 rules"] - pages["Gopher rules"]


def test_precision_recall_and_what_is_kept(filtered):
    """The truth's 0.115 of articles; a tenth of the pages and 1 to 3 % of the characters stay. The
    rules on repetition cost a few articles in a hundred and most advertisements."""
    _, funnel, _ = filtered
    first, last = funnel.rows()[0], funnel.rows()[-1]
    assert last["precision"] > 0.88 and last["recall"] > 0.90
    assert first["precision"] < 0.14
    assert 0.08 < last["kept"] < 0.15
    assert 0.01 < last["characters"] / first["characters"] < 0.03


def test_each_stage_does_its_own_work(filtered):
    _, funnel, _ = filtered
    pages = funnel.pages
    assert pages["whole"]["truncated"] == 0 < pages["crawled"]["truncated"]
    assert pages["English"]["foreign"] == 0
    for kind in ("shop", "machine", "navigation", "stub"):
        assert pages["Gopher rules"][kind] <= 0.01 * pages["crawled"][kind], kind
    assert pages["Gopher rules"]["spam"] <= 0.03 * pages["crawled"]["spam"]
    assert pages["unique"]["copy"] < 0.12 * pages["Gopher rules"]["copy"]
    assert pages["unique"]["article"] > 0.99 * pages["Gopher rules"]["article"]
    assert pages["decontaminated"]["leak"] == 0 < pages["personal data masked"]["leak"]
    assert pages["decontaminated"]["article"] > 0.98 * pages["unique"]["article"]


def test_what_comes_out_is_clean(filtered):
    documents, _, contamination = filtered
    truths = [d.truth for d in documents]
    assert sum(bool(t.personal) for t in truths) > 20
    for d in documents:
        assert not any(p in d.text for p in d.truth.personal)
        assert not contamination.found_in(d.text)
        assert "<p>" not in d.text and "cookie" not in d.text.lower()


def test_the_kept_fraction_comes_from_the_composition():
    """Three times as many articles among the rest: kept rises about threefold; without any, only
    spam in good English is left."""
    kept = {}
    for name, factor in (("less", 0.0), ("as is", 1.0), ("more", 3.0)):
        mix = {**MIX, "article": MIX["article"] * factor, "copy": 0, "leak": 0}
        funnel = Funnel()
        for _ in curate(crawl(1, 800, mix=mix), funnel):
            pass
        kept[name] = funnel.rows()[-1]["kept"]
    assert kept["less"] < 0.02 < kept["as is"] < 0.2 < kept["more"] < 0.4
    assert 1.8 < kept["more"] / kept["as is"] < 3.2


def test_memory_is_constant_but_for_the_index():
    """Five times the pages raise the peak by what the index holds, not by the pages' 5 MB of
    HTML. (A list of the documents behind any stage would be larger than the index.)"""
    for number in range(SITES):
        site(0, number)  # cached for all crawls: 4 MB that do not grow further
    list(curate(crawl(0, 50)))
    peaks, sizes = [], []
    for pages in (200, 1000):
        index, none = DuplicateIndex(), Contamination(())
        tracemalloc.start()
        funnel = Funnel()
        for _ in back(front(crawl(0, pages), funnel), funnel, index, none):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
        sizes.append(index.megabytes)
    growth = sizes[1] - sizes[0]
    assert peaks[1] - peaks[0] < 1.5 * growth + 0.2, (peaks, sizes)


def test_three_corpora_of_the_same_size(items):
    funnel, contamination = Funnel(), Contamination(item.query for item in items)
    corpora = samples(crawl(0, 2000), 40_000, contamination, funnel)
    rows = funnel.rows()
    assert [row["stage"] for row in rows] == STAGES and 200 < rows[0]["pages"] < 2000
    assert rows[-1]["pages"] == len(corpora["filtered"])
    assert list(corpora) == ["raw", "random", "filtered"]
    for texts in corpora.values():
        size = sum(map(len, texts))
        assert 40_000 <= size < 40_000 + max(map(len, texts))
    joined = {name: "\n".join(texts) for name, texts in corpora.items()}
    assert "cookie" in joined["raw"] and "cookie" not in joined["filtered"]
    assert any(ord(c) > 0x400 for c in joined["random"])  # other alphabets
    assert not any(ord(c) > 0x400 for c in joined["filtered"])


def test_the_stored_run_is_one_of_this_pipeline(filtered):
    """Its first pages are those of the fixture, so each share agrees within sampling error."""
    report, rows = stored(), filtered[1].rows()
    assert report["pages"] == report["memory"][-1]["pages"] == 200_000
    assert [row["stage"] for row in report["funnel"]] == STAGES
    assert {20_000, 100_000, 200_000} <= {row["pages"] for row in report["memory"]}
    assert report["made_by"]["command"].endswith("--pages 200000 --seed 0 --processes 1")
    last = report["funnel"][-1]
    assert report["kept"]["pages"] == pytest.approx(last["kept"])
    assert report["pages_per_second"] == pytest.approx(200_000 / report["seconds"])
    assert last["precision"] > 0.9 and last["recall"] > 0.9 and 0.08 < last["kept"] < 0.15
    for large, small in zip(report["funnel"], rows, strict=True):
        error = (large["kept"] * (1 - large["kept"]) / PAGES) ** 0.5
        assert abs(large["kept"] - small["kept"]) <= 4 * error, large["stage"]


def test_shards_of_two_crawls_may_alternate():
    """Each crawl has its own leaks. (Those of the last that began stood in both.)"""
    one, two = ([f"Q: Who is {name}?\nA: Nobody."] for name in ("Leak1", "Leak2"))
    first, second = _front_shards(0, 2, one, 1), _front_shards(0, 1, two, 1)
    next(first)
    next(second)
    documents, _ = next(first)
    text = "\n".join(d.text for d in documents)
    assert "Leak1" in text and "Leak2" not in text


def test_the_report_does_not_depend_on_the_processes(tmp_path):
    one = run(1000, processes=1, items_per_figure=3, progress=False)
    out = tmp_path / "figures" / "curation.json"
    two = run(1000, processes=2, items_per_figure=3, progress=False)
    for report in (one, two):
        for varying in ("seconds", "cpu_seconds", "pages_per_second", "processes", "made_by"):
            report.pop(varying)
        for row in report["memory"]:
            row.pop("resident_mb")
    assert one == two
    assert one["funnel"][0]["pages"] == 1000 and one["documents_with_personal_data_left"] == 0
    first, last = one["funnel"][0], one["funnel"][-1]
    assert one["kept"] == {"pages": last["pages"] / 1000,
                           "characters": last["characters"] / first["characters"]}  # fmt: skip
    copies = one["kinds"]["decontaminated"]["copy"]
    assert 0 < copies == one["near_duplicates_left"] + one["stand_ins"]
    assert one["extraction"]["precision"] > 0.99 and one["extraction"]["recall"] > 0.95
    assert not out.exists()


def test_a_copy_counts_as_a_stand_in_once():
    """Article 5 is lost: its first copy stands in, the second is left over. Article 6 is kept: its
    copy is left over."""
    tally = Tally()
    for number, kind, original in ((6, "article", None), (7, "copy", 5), (8, "copy", 5),
                                   (9, "copy", 6)):  # fmt: skip
        tally.add(Document(number, "x", Truth(kind, original=original)))
    assert (tally.stand_ins, tally.near_duplicates_left, tally.documents) == (1, 2, 4)


def test_the_command_writes_its_figures_and_explains_a_wrong_size(tmp_path, monkeypatch, capsys):
    from course_lib.curation import report

    out = tmp_path / "figures" / "curation.json"
    monkeypatch.setattr(sys, "argv", ["curation", "--pages", "500", "--out", str(out)])
    report.main()
    assert "decontaminated" in capsys.readouterr().out
    assert json.loads(out.read_text(encoding="utf-8"))["pages"] == 500
    assert [p.name for p in out.parent.iterdir()] == ["curation.json"]  # no .part left
    monkeypatch.setattr(sys, "argv", ["curation", "--pages", "777"])
    with pytest.raises(SystemExit):
        report.main()
    assert "shards of 500 pages, got 777: ask for a multiple, e.g. 1000" in capsys.readouterr().err
