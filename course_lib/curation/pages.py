"""Pages as the crawler left them: can the next stages read them, and are they whole?

Regular expressions over the HTML, in one pass each; no tree is built.
"""

import re

HIDDEN = re.compile(
    r"<!--(?:-?>|.*?--!?>|.*\Z)|<(script|style|textarea|title)\b(?:.*?</\1\b[^<>]*>?|.*\Z)",
    re.IGNORECASE | re.DOTALL,
)
"""Comments, and elements whose content is no markup; those that never end reach to the end."""
TAG = re.compile(r"<(/?)([a-z][a-z0-9]*)", re.IGNORECASE)
UNCLOSED = frozenset(
    "area base br col embed hr img input link meta source track wbr "  # never have an end tag
    "p li dt dd option tr td th thead tbody tfoot colgroup".split()  # need none
)
MAX_DEPTH = 2000
"""Elements inside of each other. Browsers stop at 512; the extraction of the main text takes
0.1 s for 2000 and, as its time grows with the square, four minutes for 100,000."""


def depth(html: str) -> int:
    """How many elements, at most, are open at once.

    Example:
        >>> depth("<div><p>One.<p>Two.<br><b>Three.</b></div><div></div>")
        2
    """
    deepest = level = 0
    for closing, name in TAG.findall(HIDDEN.sub("", html)):
        if name.lower() not in UNCLOSED:
            level = max(level - 1, 0) if closing else level + 1
            deepest = max(deepest, level)
    return deepest


def unreadable(html: str) -> str | None:
    """Why the libraries of the next stages cannot read a page, or None.

    Half a surrogate pair, as Python's JSON reader and the error handler ``surrogateescape`` leave
    it where text was decoded wrongly, is not Unicode.
    """
    try:
        html.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return f"more than {MAX_DEPTH} elements deep" if depth(html) > MAX_DEPTH else None


CLOSED = re.compile(r"</(?:html|body)(?:[\s/][^>]*)?>", re.IGNORECASE)


def is_closed(html: str) -> bool:
    """Whether the page closes its ``<html>`` or ``<body>`` and has no content behind.

    As the HTML standard reads it: in any case, with space in the tag, and comments and scripts may
    follow. A tag inside of a comment or a script closes nothing.

    Example:
        >>> is_closed("<p>A cat.</p></BODY></HTML >\\n<!-- cached -->"), is_closed("<p>A cat.</p>")
        (True, False)
    """
    html = HIDDEN.sub("", html).rstrip()
    return CLOSED.fullmatch(html, max(html.rfind("<"), 0)) is not None
