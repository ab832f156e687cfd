"""A simulated raw crawl of the micro-world: a stream of HTML pages with known truth.

Page ``n`` of crawl ``seed`` is a pure function of ``(seed, n)``, so shards can be made anywhere in
any order. Most pages are what most of a crawl is: other languages, link lists, shops, spam, machine
output, stubs, and copies of pages that stood elsewhere already.

``MIX`` follows RefinedWeb (Penedo et al., 2023, figure 2): about 50 % of the documents of Common
Crawl are not English, 24 % of all are English and good enough, and half of these are duplicates.
How the other English pages divide into link lists, shops, spam, machine output and stubs is our
guess: no paper counts them.
Simplified away: hosts of very different sizes, time, robots, encodings other than UTF-8, pages
longer than a few hundred words; every copy is of a page that is in the crawl.
"""

import html
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from course_lib.world import documents, lexicon, prose
from course_lib.world.facts import the_world
from course_lib.world.foreign import draw_language, foreign_paragraph
from course_lib.world.sites import SITES, links, paragraphs, render, site
from course_lib.world.words import sentences as word_sentences

PAGES_PER_SHARD = 500

MIX = {
    "foreign": 0.49,      # not English
    "copy": 0.115,        # a near-duplicate of an earlier article
    "article": 0.115,     # what one wants: documents of the micro-world
    "navigation": 0.09,   # lists of links
    "spam": 0.06,         # keywords, word salad, advertisements
    "shop": 0.05,         # products and prices
    "machine": 0.04,      # logs, JSON, code, lorem ipsum
    "stub": 0.028,        # error pages, log-ins, teasers
    "truncated": 0.008,   # an article of which the crawler kept only the beginning
    "leak": 0.004,        # an article with items of the evaluation below it
}  # fmt: skip
"""Share of the pages, by kind. The source is in the module's docstring."""


@dataclass(frozen=True)
class Truth:
    """What the crawl knows of a page and no pipeline may look at.

    ``text``: the main text (paragraphs, one a line), empty for pages without one.
    ``original``: of a copy, the number of the page that it copies.
    ``personal``: the e-mail addresses and telephone numbers on the page, all invented.
    """

    kind: str
    language: str = "en"
    text: str = ""
    original: int | None = None
    personal: tuple[str, ...] = ()

    @property
    def wanted(self) -> bool:
        """Whether a perfect pipeline keeps the page."""
        return self.kind == "article"


@dataclass(frozen=True)
class Page:
    number: int
    url: str
    html: str
    truth: Truth


# --- articles -----------------------------------------------------------------------------------

SECTIONS = {
    "stories": 0.32, "reviews": 0.2, "biographies": 0.14, "loose facts": 0.1, "dialogues": 0.1,
    "word facts": 0.08, "passages": 0.06,
}  # fmt: skip
"""Share of the articles, by the kind of document that they collect."""
PROSE = {kind: documents.KINDS[kind] for kind in SECTIONS} | {"word facts": word_sentences}
"""How each kind is drawn: of what is said about words, only the sentences are prose."""
PERSONAL_SHARE = 0.15
"""Share of the articles with an e-mail address or a telephone number in the text."""


def draw_personal(rng: random.Random) -> str:
    """An invented address (RFC 2606) or a number reserved for fiction (Ofcom, NANPA)."""
    name, other = rng.choice(the_world().names).lower(), lexicon.nonsense_word(rng)
    return rng.choice(
        (
            f"{name}.{other}@example.org",
            f"{name}{rng.randint(1, 99)}@mail.example.com",
            f"{other}_{name}@example.net",
            f"(555) 555-01{rng.randint(0, 99):02d}",
            f"+1 555-555-01{rng.randint(0, 99):02d}",
            f"01632 960{rng.randint(0, 999):03d}",
            f"+44 20 7946 0{rng.randint(0, 999):03d}",
        )
    )


@dataclass(frozen=True)
class Article:
    title: str
    paragraphs: tuple[str, ...]
    personal: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.paragraphs)


def _article(seed: int, number: int) -> Article:
    """The article that stands on page ``number`` and, copied, on others."""
    rng = random.Random(f"crawl {seed} article {number}")
    kind = rng.choices(list(SECTIONS), list(SECTIONS.values()))[0]
    least, lines, words = rng.randint(70, 350), [], 0
    while words < least:
        document = PROSE[kind](rng)
        lines += document.split("\n")
        words += len(document.split())
    personal: tuple[str, ...] = ()
    if rng.random() < PERSONAL_SHARE:
        personal = tuple(draw_personal(rng) for _ in range(rng.randint(1, 2)))
        contact = rng.choice(("Write to {n}: {p}.", "You can reach {n} at {p}.", "Contact: {p}."))
        lines.insert(rng.randint(0, len(lines)),
                     contact.format(n=rng.choice(the_world().names), p=" or ".join(personal)))
    title = f"{kind.capitalize()} from {rng.choice(lexicon.TOWNS)}"
    return Article(title, tuple(lines), personal)


def _edited(lines: Sequence[str], rng: random.Random) -> list[str]:
    """The paragraphs as another site prints them: words changed, sentences left out.

    Three in eight copies are word for word; one in eight has so many words changed that most
    sequences of five words are no longer the original's.
    """
    rate = rng.choice((0.0, 0.0, 0.0, 0.005, 0.01, 0.02, 0.02, 0.04))
    if not rate:
        return list(lines)
    words = [w for group in lexicon.CATEGORIES.values() for w in group]
    edited = []
    for line in lines:
        if rng.random() < 2 * rate:
            continue
        edited.append(" ".join(
            rng.choice(words) if rng.random() < rate else word for word in line.split(" ")
        ))  # fmt: skip
    return edited or list(lines)


# --- pages that nobody wants --------------------------------------------------------------------


def _headline(rng: random.Random) -> str:
    things = rng.choice(list(lexicon.CATEGORIES.values()))
    return rng.choice(
        ("{n} and the {x}", "Ten {x} facts", "News from {t}", "The {x} of {t}", "{n}: {x}")
    ).format(n=rng.choice(the_world().names), x=rng.choice(things), t=rng.choice(lexicon.TOWNS))


def _navigation(rng: random.Random) -> list[str]:
    blocks = []
    for _ in range(rng.randint(2, 5)):
        blocks.append(f"<h2>{rng.choice(lexicon.TOWNS)}</h2>")
        blocks.append(links([_headline(rng) for _ in range(rng.randint(8, 25))], rng))
    return blocks


def _shop(rng: random.Random) -> list[str]:
    rows = []
    for _ in range(rng.randint(8, 30)):
        thing = f"{rng.choice(lexicon.COLOURS)} {rng.choice(lexicon.CATEGORIES['clothing'])}"
        price = f"{rng.randint(1, 200)}.{rng.randint(0, 99):02d}"
        rows.append(
            f'<div class="product"><h3>{thing.capitalize()} #{rng.randint(1000, 9999)}</h3>'
            f'<span class="price">$ {price}</span><p>Size: {rng.choice("SMLX")} | In stock: '
            f"{rng.randint(0, 50)}</p><button>Add to basket</button></div>"
        )
    return rows


ADVERTISEMENTS = (
    "You have won {a} and can collect it in {t} today.",
    "Thousands of people in {t} have already bought this {x}.",
    "The best {x} of the year is now half the price.",
    "Order before {d} and we will send a second {x} with it.",
    "{n} lost ten pounds with this simple {x}, and so can you.",
    "Doctors of {t} hate the trick with the {x}.",
    "Every {x} that we sell comes with a guarantee of ten years.",
    "Do not miss the offer for {a} that ends on {d}.",
)


def _spam(rng: random.Random) -> list[str]:
    """Keyword lists, word salad, or (one in eight) advertisements in good English."""
    thing = rng.choice(rng.choice(list(lexicon.CATEGORIES.values())))
    form = rng.random()
    if form < 0.45:
        phrase = f"buy cheap {thing} online"
        extra = [f"best {thing} price", f"{thing} free shipping", f"{thing} discount", phrase]
        return paragraphs([
            " ".join([phrase, *rng.choices(extra, k=rng.randint(6, 20))]) + "."
            for _ in range(rng.randint(4, 10))
        ])  # fmt: skip
    if form < 0.87:
        return paragraphs([documents.noise(rng).capitalize() + "."
                           for _ in range(rng.randint(5, 14))])  # fmt: skip
    sentences = [
        rng.choice(ADVERTISEMENTS).format(
            x=(word := rng.choice(rng.choice(list(lexicon.CATEGORIES.values())))),
            a=lexicon.with_article(word), t=rng.choice(lexicon.TOWNS), d=rng.choice(lexicon.DAYS),
            n=rng.choice(the_world().names))
        for _ in range(rng.randint(8, 20))
    ]  # fmt: skip
    return paragraphs([" ".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4)])


LOREM = (
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut "
    "labore et dolore magna aliqua."
)


def _machine(rng: random.Random) -> list[str]:
    form = rng.randrange(5)
    number = rng.randint(10, 40)
    if form == 0:
        lines = [f"2024-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d} ERROR "
                 f"[{rng.randrange(16**8):08x}] the handler {rng.randint(1, 99)} of port "
                 f"{rng.randint(1000, 9999)} timed out..." for _ in range(number)]  # fmt: skip
    elif form == 1:
        lines = [f'{{"id": {rng.randrange(10**6)}, "sku": "{rng.randrange(16**10):010x}", '
                 f'"ok": true}},' for _ in range(number)]  # fmt: skip
    elif form == 2:
        lines = [f"if (x{rng.randint(1, 9)} > {rng.randint(0, 99)}) {{ return f({rng.randint(0, 9)}"
                 f"); }} // the line {i} of the file" for i in range(number)]  # fmt: skip
    elif form == 3:
        lines = [f"{rng.randrange(16**32):032x} {rng.randrange(16**32):032x}"
                 for _ in range(number)]  # fmt: skip
    else:
        return paragraphs([LOREM] * rng.randint(3, 8))
    return [f"<pre>{html.escape(chr(10).join(lines), quote=False)}</pre>"]


def _stub(rng: random.Random) -> list[str]:
    return paragraphs([rng.choice((
        "404 Not Found. The page that you have asked for does not exist.",
        "Please log in to read this article. Forgot your password?",
        "Please enable JavaScript to see this page.",
        "Nothing has been posted here yet. Be the first to write a comment!",
        prose.review(rng).split("\n")[0][:90] + "... Read more",
    ))])  # fmt: skip


JUNK = {"navigation": _navigation, "shop": _shop, "spam": _spam, "machine": _machine, "stub": _stub}

# --- the stream ---------------------------------------------------------------------------------


def _kind(seed: int, number: int, mix: Mapping[str, float]) -> str:
    return random.Random(f"crawl {seed} kind {number}").choices(list(mix), list(mix.values()))[0]


def _original(seed: int, number: int, mix: Mapping[str, float]) -> int | None:
    """What page ``number`` copies: any earlier article or copy, and of a copy its original.

    The more copies an article has, the more often it is copied again, so the numbers of copies are
    heavy-tailed (Simon, 1955; for the web Kumar et al., 2000). None where nothing is there to copy:
    such a page is an article itself.
    """
    rng = random.Random(f"crawl {seed} original of {number}")
    for _ in range(200 if number else 0):
        earlier = rng.randrange(number)
        kind = _kind(seed, earlier, mix)
        if kind == "article":
            return earlier
        if kind == "copy":
            original = _original(seed, earlier, mix)
            return earlier if original is None else original
    return None


def _content(
    seed: int, number: int, kind: str, leaks: Sequence[str], mix: Mapping[str, float],
    rng: random.Random,
) -> tuple[str, list[str], Truth]:  # fmt: skip
    """(title, blocks of HTML, truth) of a page."""
    if kind == "foreign":
        language = draw_language(rng)
        texts = [foreign_paragraph(language, rng) for _ in range(rng.randint(2, 7))]
        return texts[0][:40], paragraphs(texts), Truth(kind, language, "\n".join(texts))
    if kind in JUNK:
        return _headline(rng), JUNK[kind](rng), Truth(kind)
    original = _original(seed, number, mix) if kind == "copy" else None
    article = _article(seed, number if original is None else original)
    lines, personal = list(article.paragraphs), article.personal
    if original is not None:
        lines = _edited(lines, rng)
        personal = tuple(p for p in personal if any(p in line for line in lines))
    elif kind == "copy":  # nothing to copy yet
        kind = "article"
    if kind == "leak":
        lines += [line for leak in rng.sample(leaks, min(3, len(leaks)))
                  for line in leak.split("\n")]  # fmt: skip
    truth = Truth(kind, "en", "\n".join(lines), original, personal)
    return article.title, paragraphs(lines), truth


def page(
    seed: int, number: int, leaks: Sequence[str] = (), mix: Mapping[str, float] = MIX
) -> Page:
    """Page ``number`` of crawl ``seed``.

    Args:
        leaks: items of an evaluation, as text; without any, pages of kind ``leak`` have none.
        mix: weights of the kinds.

    Raises:
        ValueError: ``mix`` names a kind that is not in ``MIX``.
    """
    if unknown := set(mix) - set(MIX):
        raise ValueError(f"Unknown kinds of page {sorted(unknown)}: choose from {list(MIX)}.")
    kind = _kind(seed, number, mix)
    rng = random.Random(f"crawl {seed} page {number}")
    home = site(seed, rng.randrange(SITES))
    title, blocks, truth = _content(seed, number, kind, leaks, mix, rng)
    side = [_headline(rng) for _ in range(rng.randint(4, 12))]
    text = render(home, title, blocks, side, rng)
    if kind == "truncated":
        text = text[: rng.randint(text.index(blocks[0]), text.index(blocks[-1]))]
    return Page(number, f"https://{home.host}/{number}", text, truth)


def shard_pages(
    seed: int, shard: int, leaks: Sequence[str] = (), mix: Mapping[str, float] = MIX
) -> Iterator[Page]:
    """The ``PAGES_PER_SHARD`` pages of one shard, always the same for the same arguments."""
    for number in range(shard * PAGES_PER_SHARD, (shard + 1) * PAGES_PER_SHARD):
        yield page(seed, number, leaks, mix)


def crawl(
    seed: int, pages: int, leaks: Sequence[str] = (), mix: Mapping[str, float] = MIX
) -> Iterator[Page]:
    """The first ``pages`` pages.

    Example:
        >>> [p.truth.kind in MIX for p in crawl(0, 2)]
        [True, True]
    """
    for number in range(pages):
        yield page(seed, number, leaks, mix)
