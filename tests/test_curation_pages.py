"""Pages as the crawler left them: whole or cut, readable or not; and nothing ends the stream."""

import json

import pytest
from timing import growth

pytest.importorskip("resiliparse", reason="needs the extra `curation`")

from course_lib.curation import Contamination, Funnel, curate, samples, shingles
from course_lib.curation.pages import MAX_DEPTH, depth, is_closed, unreadable
from course_lib.curation.pipeline import Document, whole
from course_lib.curation.quality import c4, clean_lines, gopher, sentences
from course_lib.world.crawl import Page, Truth, crawl

BODY = "<html><body><p>A cat.</p>"
CLOSED = (
    "</body></html>", "</html>", "</HTML>", "</Html>\n", "</html >", "</html\n>", "</html\t>",
    "</html/>", "</html lang='en'>", "</html><!-- cached -->", "</html>\n<!-- a -->\n<!-- b -->\n",
    "</html><!-- a > b -- c -->", "</html><!-->", "</html><!---->", "</html><!-- a --!>",
    "</html><!-- </p> -->", "</html><script>count('<p>')</script>", "</html><!-- cut while cach",
    "</body>", "</BODY >\n<!-- end -->", "</html></body>", "</html>\u00a0",
)  # fmt: skip
CUT = (
    "", "<p>And", "</p>", "</html", "</", "</htm>", "</html5>", "</htmlx >", "<html>", "/html>",
    "</html><p>And", "</html> and", "<!-- </html> -->", "<!-- </html>", "&lt;/html&gt;",
    "<script>write('</html>')</script>", "<script>write('</html>", "<textarea></html>",
    "<style>/* </html>", "<!-- a --><p>And", "</header>", "< /html>",
)  # fmt: skip


@pytest.mark.parametrize("end", CLOSED, ids=ascii)
def test_a_closed_page_is_whole(end):
    assert is_closed(BODY + end)


@pytest.mark.parametrize("end", CUT, ids=ascii)
def test_a_cut_page_is_not(end):
    assert not is_closed(BODY + end)


def test_every_cut_of_a_page_is_noticed():
    """A closed page of the crawl, cut before its end tags at each of its characters."""
    html = next(p.html for p in crawl(0, 50) if p.html.rstrip().endswith("</body></html>"))
    inner = html[: html.index("</body>")][-4000:]
    assert is_closed(html)
    assert not [i for i in range(0, len(inner), 7) if is_closed(inner[:i])]


def test_depth_by_hand():
    """div > b is 2 deep: paragraphs and line breaks close themselves, and the b is closed."""
    assert depth("<div><p>One.<p>Two.<br><b>Three.</b></div><div></div>") == 2
    assert depth("<ul><li>a<li>b<li>c</ul>") == 1 == depth("</div></div><DIV>")
    assert depth("<!-- <div><div> --><script>'<div><div>'</script>") == 0 == depth("a < b")
    assert depth("<div>" * 9) == 9 == depth("<div>" * 9 + "</div>" * 9)


def test_what_cannot_be_read_is_named():
    assert unreadable("<p>A cat \U0001f408.</p>") is None
    for half in "\ud800", "\udfff", json.loads('"\\ud83d"'):
        assert unreadable(f"<p>A cat {half}.</p>") == "half a surrogate pair"
    assert unreadable("<div>" * MAX_DEPTH) is None
    assert unreadable("<div>" * (MAX_DEPTH + 1)) == "more than 2000 elements deep"


def spoilt(pages, marks):
    """The pages, and behind each one that would end the stream."""
    for page in pages:
        yield page
        mark = marks[page.number % len(marks)]
        yield Page(page.number + 10**6, page.url, page.html.replace("<h1>", f"<h1>{mark}"),
                   Truth("stub"))  # fmt: skip


def test_a_page_that_cannot_be_read_is_counted_and_the_stream_goes_on():
    """60 pages and as many copies with half a surrogate pair, or 20,000 elements deep: the copies
    are counted as dropped, the rest comes out as if they had not been there. (The first ended the
    stream: "html is neither string nor HTMLTree"; the second takes ten seconds a page.)"""
    marks = "\ud800", "\udc00x", "<div>" * 20_000
    funnel, alone = Funnel(), Funnel()
    documents = list(curate(spoilt(crawl(0, 60), marks), funnel))
    assert documents == list(curate(crawl(0, 60), alone)) and len(documents) > 3
    assert funnel.rows()[0]["pages"] == 120 and funnel.rows()[1:]
    for mixed, pure in zip(funnel.rows()[1:], alone.rows()[1:], strict=True):
        assert mixed["pages"] == pure["pages"], mixed["stage"]
    assert funnel.dropped - alone.dropped == {
        "unreadable: half a surrogate pair": 40, "unreadable: more than 2000 elements deep": 20,
    }  # fmt: skip


def test_the_three_corpora_leave_it_out_too():
    none = Contamination(())
    mixed = samples(spoilt(crawl(0, 60), ["\ud800"]), 20_000, none)
    assert mixed == samples(crawl(0, 60), 20_000, none)


def test_pages_that_end_in_other_ways_pass_the_stage():
    pages = [Document(i, BODY + end, Truth("article")) for i, end in enumerate(CLOSED + CUT)]
    assert [d.number for d in whole(pages)] == list(range(len(CLOSED)))


# --- time ---------------------------------------------------------------------------------------

CALLS = {
    "sentences": sentences, "clean_lines": clean_lines, "c4": c4, "gopher": gopher,
    "shingles": shingles, "found_in": Contamination(["a b c", "Q: a?"]).found_in,
    "is_closed": is_closed, "depth": depth,
}  # fmt: skip
TEXTS = ["a", "a ", "a.", "a\n", ". "]
HTML = ["<!--", "<!-- -->", "<script", "<script>", "<title></title", "</html>", "</html ",
        "</html><!--", "<div>", "<"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "piece"),
    [(name, piece) for name in CALLS
     for piece in (HTML if name in ("is_closed", "depth") else TEXTS)],
)  # fmt: skip
def test_the_time_grows_with_the_text(name, piece):
    """``sentences`` took 16 times as long for four times a text without a full stop."""
    assert growth(CALLS[name], piece) < 9


def test_a_megabyte_without_a_full_stop_passes():
    assert sentences("a" * 10**6) == 0 and sentences("a " * 500_000 + ".") == 1
