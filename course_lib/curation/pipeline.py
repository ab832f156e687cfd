"""The stages of the crawl filter and the funnel that counts what comes out of each.

A stage is a generator over documents. The order is that of RefinedWeb (Penedo et al., 2023): main
text, language, quality, near-duplicates; then personal data is masked and pages with items of the
evaluation are dropped. The stages up to quality need one page at a time, so shards pass them in any
number of processes (``front``); the others run once, in the order of the crawl (``back``).
Simplified away: filters of addresses, classifiers of quality (CCNet, FineWeb-Edu), removal of
repeated passages within and between pages.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from course_lib.curation.duplicates import DuplicateIndex, band_keys
from course_lib.curation.pages import is_closed, unreadable
from course_lib.curation.personal import mask_personal
from course_lib.curation.quality import c4, gopher
from course_lib.curation.removal import Contamination
from course_lib.world.crawl import Page, Truth


@dataclass(frozen=True, slots=True)
class Document:
    """A page on its way: ``text`` is the HTML until the main text is extracted.

    ``bands`` are the keys under which near-duplicates meet. ``truth`` is for counting only.
    """

    number: int
    text: str
    truth: Truth
    bands: tuple[int, ...] = ()


@dataclass
class Funnel:
    """What came out of each stage: pages by kind, and characters; and why pages were dropped."""

    pages: dict[str, Counter] = field(default_factory=dict)
    characters: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)

    def count(self, stage: str, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass the documents on and count them. Stages stand in the order of these calls."""
        kinds = self.pages.setdefault(stage, Counter())

        def counted() -> Iterator[Document]:
            for document in documents:
                kinds[document.truth.kind] += 1
                self.characters[stage] += len(document.text)
                yield document

        return counted()

    def add(self, other: "Funnel") -> None:
        """Take in the counts of another shard."""
        for stage, kinds in other.pages.items():
            self.pages.setdefault(stage, Counter()).update(kinds)
        self.characters.update(other.characters)
        self.dropped.update(other.dropped)

    def rows(self) -> list[dict]:
        """A row a stage: {"stage", "pages", "kept", "characters", "wanted", "precision", "recall"}.

        ``kept`` is the share of the crawled pages; precision and recall are those of a pipeline
        that ends there, against ``Truth.wanted``.
        """
        first, rows = next(iter(self.pages.values()), Counter()), []
        for stage, kinds in self.pages.items():
            total, wanted = kinds.total(), kinds["article"]
            rows.append({
                "stage": stage, "pages": total, "kept": total / max(first.total(), 1),
                "characters": self.characters[stage], "wanted": wanted,
                "precision": wanted / max(total, 1), "recall": wanted / max(first["article"], 1),
            })  # fmt: skip
        return rows


# --- stages for one page at a time --------------------------------------------------------------


def from_pages(pages: Iterable[Page]) -> Iterator[Document]:
    for page in pages:
        yield Document(page.number, page.html, page.truth)


def readable(documents: Iterable[Document], dropped: Counter) -> Iterator[Document]:
    for document in documents:
        if (reason := unreadable(document.text)) is None:
            yield document
        else:
            dropped[f"unreadable: {reason}"] += 1


def whole(documents: Iterable[Document]) -> Iterator[Document]:
    """Pages that the crawler did not cut: here those that are closed.

    A WARC file says so itself (``WARC-Truncated``); sites that leave out the tags are lost.
    """
    for document in documents:
        if is_closed(document.text):
            yield document


def main_text(html: str) -> str:
    """The main content as plain text, one paragraph a line, without what surrounds it."""
    from resiliparse.extract.html2text import extract_plain_text

    text = extract_plain_text(html, main_content=True, alt_texts=False, links=False)
    return "\n".join(line.strip() for line in text.split("\n") if line.strip())


def extracted(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        if text := main_text(document.text):
            yield replace(document, text=text)


def language(text: str) -> str:
    """The language's code (ISO 639-1) by langid's naive Bayes over byte n-grams."""
    import py3langid

    return py3langid.classify(text[:1000])[0]


def english(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        if language(document.text) == "en":
            yield document


def pass_c4(documents: Iterable[Document], dropped: Counter) -> Iterator[Document]:
    for document in documents:
        text, broken = c4(document.text)
        if broken is None:
            yield replace(document, text=text)
        else:
            dropped[f"C4: {broken}"] += 1


def pass_gopher(documents: Iterable[Document], dropped: Counter) -> Iterator[Document]:
    for document in documents:
        if (broken := gopher(document.text)) is None:
            yield document
        else:
            dropped[f"Gopher: {broken}"] += 1


def signed(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        yield replace(document, bands=band_keys(document.text))


def unique(documents: Iterable[Document], index: DuplicateIndex) -> Iterator[Document]:
    """The first page of each group of near-duplicates, in the order of the crawl."""
    for document in documents:
        if index.is_new(document.bands):
            yield document


# --- stages that compare with others ------------------------------------------------------------


def masked(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        yield replace(document, text=mask_personal(document.text))


def decontaminated(documents: Iterable[Document], items: Contamination) -> Iterator[Document]:
    for document in documents:
        if not items.found_in(document.text):
            yield document


# --- the pipeline -------------------------------------------------------------------------------


def front(pages: Iterable[Page], funnel: Funnel) -> Iterator[Document]:
    """All stages that look at one page alone."""
    stream = funnel.count("crawled", from_pages(pages))
    stream = funnel.count("whole", whole(readable(stream, funnel.dropped)))
    stream = funnel.count("main text", extracted(stream))
    stream = funnel.count("English", english(stream))
    stream = funnel.count("C4 rules", pass_c4(stream, funnel.dropped))
    stream = funnel.count("Gopher rules", pass_gopher(stream, funnel.dropped))
    return signed(stream)


def back(
    documents: Iterable[Document], funnel: Funnel, index: DuplicateIndex, items: Contamination
) -> Iterator[Document]:
    """The stages that compare a page with others."""
    stream = funnel.count("unique", unique(documents, index))
    stream = funnel.count("personal data masked", masked(stream))
    return funnel.count("decontaminated", decontaminated(stream, items))


def curate(
    pages: Iterable[Page], funnel: Funnel | None = None, items: Contamination | None = None
) -> Iterator[Document]:
    """The documents that a crawl's pages leave, one page at a time.

    Args:
        funnel: counts what each stage lets through.
        items: the evaluation that no document may contain.
    """
    funnel = funnel if funnel is not None else Funnel()
    return back(front(pages, funnel), funnel, DuplicateIndex(), items or Contamination(()))


def samples(
    pages: Iterable[Page], characters: int, items: Contamination, funnel: Funnel | None = None
) -> dict[str, list[str]]:
    """Three corpora of the same size from one crawl, to train the same model on.

    Args:
        characters: how many each corpus shall have; no page is read after the last has them.
        items: the evaluation that no filtered document may contain.
        funnel: counts what each stage lets through.

    Returns:
        ``"raw"``: all text of each page, menus and scripts' remains included; ``"random"``: the
        main text of each page, unfiltered; ``"filtered"``: what the pipeline keeps. Each has at
        least ``characters`` characters, or all there is.
    """
    from resiliparse.extract.html2text import extract_plain_text

    corpora: dict[str, list[str]] = {"raw": [], "random": [], "filtered": []}
    size = Counter()

    def put(name: str, text: str) -> None:
        if text and size[name] < characters:
            corpora[name].append(text)
            size[name] += len(text)

    def tap(pages: Iterable[Page]) -> Iterator[Page]:
        for page in pages:
            for name, extract in (("raw", extract_plain_text), ("random", main_text)):
                if size[name] < characters and unreadable(page.html) is None:
                    put(name, extract(page.html))
            yield page

    for document in curate(tap(pages), funnel, items):
        put("filtered", document.text)
        if size["filtered"] >= characters:
            break
    return corpora
