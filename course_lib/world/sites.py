"""The web sites of the simulated crawl: what surrounds a page's content in its HTML.

A site has a host, a layout and its own menu, scripts, styles, cookie notice and footer; a page gets
them around its content. Layouts differ as on the web: some mark the content (``<article>``), some
hint at it (``<div class="post-body">``), some set it in a table or leave it bare.
Simplified away: size. A page here has 5 to 9 thousand characters of HTML; on the web the median is
several times that (HTTP Archive, Web Almanac 2022), with the same little text in it.
"""

import html
import random
from dataclasses import dataclass
from functools import lru_cache

from course_lib.world import lexicon

SITES = 600
"""How many sites there are; a page's site is drawn evenly."""

LAYOUTS = (
    '<main><article class="entry">{head}{body}</article>{side}</main>',
    '<div id="page"><div class="post-body">{head}{body}</div>{side}</div>',
    '<div class="container"><div class="row"><section id="content">{head}{body}</section>{side}'
    "</div></div>",
    '<table width="100%"><tr><td class="left">{side}</td><td class="main">{head}{body}</td></tr>'
    "</table>",
    '<main id="main">{head}<div class="article-text">{body}</div></main>{side}',
    "{head}{body}{side}",
)
MENU = (
    "Home", "News", "About us", "Contact", "Archive", "Shop", "Jobs", "Events", "Gallery", "Forum",
    "Help", "Search", "Log in", "Register", "Newsletter", "Partners", "Weather", "Sports", "Travel",
)  # fmt: skip
FOOTERS = (
    "Copyright {year} {name}. All rights reserved.",
    "{name} {year}. By using this site you accept our terms of use.",
    "Read our privacy policy and our cookie policy.",
    "Follow us. Share this page. Subscribe to the newsletter.",
)
COOKIES = (
    "We use cookies to give you the best experience. Read our cookie policy.",
    "This site uses cookies. Accept all. Settings.",
    "Please enable JavaScript to use all functions of this page.",
)
SIDE_TITLES = ("Related", "Most read", "You may also like", "Tags", "Latest comments", "Archive")


@dataclass(frozen=True)
class Site:
    """What all pages of a site share: ``frame`` has the places ``@TITLE@`` and ``@CONTENT@``."""

    host: str
    frame: str
    layout: str


def _identifier(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 8)))


def _script(rng: random.Random) -> str:
    """Tracking code as it fills the head of a page."""
    lines = [
        f"window.{_identifier(rng)}=window.{_identifier(rng)}||[];"
        f"function {_identifier(rng)}(a,b){{return a.push([b,{rng.randint(0, 9999)}])}}"
        for _ in range(rng.randint(6, 16))
    ]
    return "<script>" + "".join(lines) + "</script>"


def _style(rng: random.Random) -> str:
    rules = [
        f".{_identifier(rng)}{{margin:0 auto;padding:{rng.randint(0, 40)}px;color:#"
        f"{rng.randrange(16**6):06x}}}"
        for _ in range(rng.randint(8, 20))
    ]
    return "<style>" + "".join(rules) + "</style>"


def links(texts: list[str], rng: random.Random) -> str:
    """An unordered list of links."""
    items = "".join(
        f'<li class="item-{rng.randint(1, 999)}"><a href="/{_identifier(rng)}">'
        f"{html.escape(text)}</a></li>"
        for text in texts
    )
    return f"<ul>{items}</ul>"


@lru_cache(maxsize=SITES)
def site(seed: int, number: int) -> Site:
    """The site of that number: a pure function of (seed, number).

    One site in 60 leaves out ``</body></html>``, as the HTML standard allows.
    """
    rng = random.Random(f"crawl {seed} site {number}")
    town = rng.choice(lexicon.TOWNS)
    name = f"{town} {rng.choice(('Gazette', 'Blog', 'Times', 'Online', 'Portal', 'Pages', 'Net'))}"
    host = f"www.{name.lower().replace(' ', '-')}-{number}.example"
    year = rng.randint(2009, 2024)
    footer = "".join(f"<p>{line.format(name=name, year=year)}</p>" for line in
                     rng.sample(FOOTERS, rng.randint(2, 4)))  # fmt: skip
    frame = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>@TITLE@ - {name}'
        f"</title>{_script(rng)}{_style(rng)}{_script(rng)}</head><body>"
        f'<div class="cookie-banner">{rng.choice(COOKIES)}</div>'
        f'<header class="site-header"><nav>{links(rng.sample(MENU, rng.randint(6, 14)), rng)}</nav>'
        f"</header>@CONTENT@<footer>{footer}</footer>{_script(rng)}"
    )
    end = "" if rng.random() < 1 / 60 else "</body></html>\n"
    return Site(host, frame + end, rng.choice(LAYOUTS))


def render(site: Site, title: str, blocks: list[str], side: list[str], rng: random.Random) -> str:
    """A whole page.

    Args:
        title: of the page, as text.
        blocks: the content, as HTML.
        side: texts of the links beside the content.
    """
    title = html.escape(title)
    beside = f'<aside class="sidebar"><h3>{rng.choice(SIDE_TITLES)}</h3>{links(side, rng)}</aside>'
    content = site.layout.format(head=f"<h1>{title}</h1>", body="".join(blocks), side=beside)
    return site.frame.replace("@TITLE@", title).replace("@CONTENT@", content)


def paragraphs(texts: list[str]) -> list[str]:
    """Each text as a ``<p>``, escaped."""
    return [f"<p>{html.escape(text, quote=False)}</p>" for text in texts]
