"""The simulated crawl: the same pages everywhere, and a truth that is true."""

import html
import re
from collections import Counter

import pytest

from course_lib.world.crawl import (
    MIX,
    PAGES_PER_SHARD,
    crawl,
    draw_personal,
    page,
    shard_pages,
)
from course_lib.world.foreign import SHARES

LEAKS = [f"Q: Where does Leakperson{i} live?\nA: The answer is Nowhere{i}." for i in range(5)]
PAGES = 4000


@pytest.fixture(scope="module")
def pages():
    return list(crawl(0, PAGES, LEAKS))


def of(pages, *kinds):
    return [p for p in pages if p.truth.kind in kinds]


def test_a_page_is_the_same_however_it_is_made(pages):
    shard = list(shard_pages(0, 2, LEAKS))
    assert shard == pages[2 * PAGES_PER_SHARD : 3 * PAGES_PER_SHARD]
    assert page(0, 777, LEAKS) == pages[777]
    assert page(1, 777, LEAKS).html != pages[777].html


def test_numbers_and_addresses_are_unique(pages):
    assert [p.number for p in pages] == list(range(PAGES))
    assert len({p.url for p in pages}) == PAGES
    assert all(re.fullmatch(r"https://www\.[a-z0-9-]+\.example/\d+", p.url) for p in pages)


def test_kinds_come_as_often_as_the_mix_says(pages):
    """Four standard deviations of a binomial: sqrt(4000 x .49 x .51) = 32 pages at most."""
    counts = Counter(p.truth.kind for p in pages)
    for kind, share in MIX.items():
        assert abs(counts[kind] - PAGES * share) < 4 * (PAGES * share * (1 - share)) ** 0.5, kind
    assert sum(MIX.values()) == pytest.approx(1)


def test_the_clean_text_is_in_the_html_unless_it_was_cut(pages):
    for p in pages:
        inside = [html.escape(line, quote=False) in p.html for line in p.truth.text.split("\n")]
        if p.truth.kind != "truncated":
            assert all(inside), (p.number, p.truth.kind)
    cut = of(pages, "truncated")
    assert not any(p.html.rstrip().endswith("</html>") for p in cut)
    lost = [not all(html.escape(li, quote=False) in p.html for li in p.truth.text.split("\n"))
            for p in cut]  # fmt: skip
    assert len(cut) > 10 and all(lost)


def test_every_article_has_a_menu_a_script_and_a_footer_around_it(pages):
    for p in of(pages, "article"):
        assert p.html.count("<a href") > 9 and "<script>" in p.html and "<footer>" in p.html
        assert len(p.html) > 2 * len(p.truth.text)


def test_copies_copy_an_earlier_article(pages):
    for p in of(pages, "copy"):
        assert p.truth.original < p.number
        original = pages[p.truth.original].truth
        assert original.kind == "article"
        assert set(p.truth.personal) <= set(original.personal)
        copied, first = set(p.truth.text.split()), set(original.text.split())
        assert len(copied & first) > 0.6 * len(copied | first)
    assert all(p.truth.original is None for p in pages if p.truth.kind != "copy")


def test_copies_are_heavy_tailed_and_spread(pages):
    """Simon's process: the median article with copies has one or two, the most copied dozens."""
    copies = of(pages, "copy")
    counts = Counter(p.truth.original for p in copies)
    numbers = sorted(counts.values())
    assert numbers[len(numbers) // 2] <= 2
    assert numbers[-1] > 5 * sum(numbers) / len(numbers)
    distances = sorted(p.number - p.truth.original for p in copies)
    assert distances[len(distances) // 2] > 500
    exact = sum(p.truth.text == pages[p.truth.original].truth.text for p in copies)
    assert 0.25 < exact / len(copies) < 0.75


def test_personal_data_is_invented_and_where_the_truth_says(pages):
    with_data = [p for p in pages if p.truth.personal]
    assert 0.08 < len([p for p in with_data if p.truth.wanted]) / len(of(pages, "article")) < 0.22
    reserved = re.compile(
        r"[a-z0-9._]+@(example\.org|mail\.example\.com|example\.net)"
        r"|(\(555\)|\+1 555[- ])[ ]?-?555-01\d\d|01632 960\d{3}|\+44 20 7946 0\d{3}"
    )
    for p in with_data:
        for item in p.truth.personal:
            assert item in p.truth.text
            assert reserved.fullmatch(item), item


def test_every_form_of_personal_data_is_drawn():
    import random

    rng = random.Random(0)
    drawn = [draw_personal(rng) for _ in range(200)]
    for start in ("(555) 555-01", "+1 555-555-01", "01632 960", "+44 20 7946 0"):
        assert any(d.startswith(start) for d in drawn)
    assert any(d.endswith("@example.org") for d in drawn)


def test_leaks_stand_on_leak_pages_and_nowhere_else(pages):
    for p in pages:
        assert ("Leakperson" in p.html) == (p.truth.kind == "leak"), p.number
    assert all("Leakperson" not in p.html for p in crawl(0, 600))


def test_foreign_pages_are_written_in_their_script(pages):
    alphabets = {"ko": "[가-힣]", "ru": "[а-яё]", "ja": "[ぁ-ん]", "zh": "[一-鿿]"}
    foreign = of(pages, "foreign")
    for p in foreign:
        letters = re.findall(alphabets.get(p.truth.language, "[a-zäöüßéèñçãąęłó]"), p.truth.text)
        assert len(letters) > 20, p.truth
    counts = Counter(p.truth.language for p in foreign)
    assert set(counts) == set(SHARES) and counts["ru"] > counts["nl"] > counts["ko"] > 0


def test_a_copy_with_nothing_to_copy_is_an_article():
    """With copies alone, page 0 must be an article and all others copies of it. (Trying again
    after each failed copy took 200 times as long with every page.)"""
    truths = [p.truth for p in crawl(0, 60, mix={"copy": 1})]
    assert truths[0].kind == "article" and truths[0].original is None
    assert {(t.kind, t.original) for t in truths[1:]} == {("copy", 0)}


def test_the_mix_is_an_argument():
    assert {p.truth.kind for p in crawl(0, 50, mix={"article": 1})} == {"article"}
    kinds = Counter(p.truth.kind for p in crawl(0, 400, mix={"article": 1, "copy": 3}))
    assert 230 < kinds["copy"] < 350
    with pytest.raises(ValueError, match="Unknown kinds of page.*poetry.*choose from"):
        page(0, 0, mix={"poetry": 1})
