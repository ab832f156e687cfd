"""Rules that tell prose from the rest of a crawl, each a function of the text alone.

C4: Raffel et al., "Exploring the Limits of Transfer Learning", 2020, section 2.2. Gopher: Rae et
al., "Scaling Language Models", 2021, appendix A.1.1; its thresholds are kept as printed.
Simplified away: C4's list of bad words (the micro-world has none), its minimum of words a line
(dialogues greet in two words) and its removal of three sentences that stand on another page too;
Gopher's limit of 100,000 words and its rules on repeated paragraphs (here a paragraph is a line).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable

# --- C4 -----------------------------------------------------------------------------------------

TERMINAL = (".", "!", "?", '"')
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
          "use cookies")  # fmt: skip


def clean_lines(text: str) -> str:
    """The lines that end like a sentence and speak neither of JavaScript nor of policies.

    Example:
        >>> clean_lines("Home\\nThe cat sat.\\nPlease enable JavaScript.\\nRead our cookie policy.")
        'The cat sat.'
    """
    return "\n".join(
        line
        for line in map(str.strip, text.split("\n"))
        if line.endswith(TERMINAL)
        and not line.endswith("...")
        and "javascript" not in (lower := line.lower())
        and not any(phrase in lower for phrase in POLICY)
    )


def sentences(text: str) -> int:
    """How many sentences: runs of text that end in a full stop, question or exclamation mark.

    Split, not searched for: a search tries a text without any mark from each of its characters.

    Example:
        >>> sentences("Wait... What?! Yes. and the rest")
        3
    """
    return sum(bool(piece.strip()) for piece in re.split(r"[.!?]+", text)[:-1])


C4_RULES: dict[str, Callable[[str], bool]] = {
    "curly bracket": lambda text: "{" in text,
    "lorem ipsum": lambda text: "lorem ipsum" in text.lower(),
}
"""Name -> whether the page breaks the rule; asked before the lines are cleaned."""
MIN_SENTENCES = 3


def c4(text: str) -> tuple[str, str | None]:
    """(cleaned text, name of the broken rule or None)."""
    for name, breaks in C4_RULES.items():
        if breaks(text):
            return text, name
    text = clean_lines(text)
    return text, "sentences" if sentences(text) < MIN_SENTENCES else None


# --- Gopher -------------------------------------------------------------------------------------

STOP_WORDS = frozenset("the be to of and that have with".split())
BULLETS = ("-", "*", "•", "·")
TOP_NGRAM_SHARES = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE_NGRAM_SHARES = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def _share(lines: list[str], test: Callable[[str], bool]) -> float:
    return sum(map(test, lines)) / max(len(lines), 1)


def top_ngram_share(words: list[str], n: int) -> float:
    """Share of the words' characters that lie in the most frequent n-gram, if it comes twice.

    Example:
        >>> top_ngram_share("buy now or buy now".split(), 2)  # 2 x 6 of 14 characters
        0.8571428571428571
    """
    counts = Counter(zip(*(words[i:] for i in range(n))))
    if not counts:
        return 0.0
    gram, count = counts.most_common(1)[0]
    return count * sum(map(len, gram)) / sum(map(len, words)) if count > 1 else 0.0


def duplicate_ngram_share(words: list[str], n: int) -> float:
    """Share of the characters in n-grams that occurred before, none counted twice."""
    seen, covered, end = set(), 0, 0
    for i, gram in enumerate(zip(*(words[k:] for k in range(n)))):
        if gram in seen:
            covered += sum(map(len, words[max(i, end) : i + n]))
            end = i + n
        seen.add(gram)
    return covered / max(sum(map(len, words)), 1)


def _characters(lines: Iterable[str]) -> int:
    return sum(map(len, lines))


def _mean_length(words: list[str]) -> float:
    return sum(map(len, words)) / max(len(words), 1)


GOPHER_RULES: dict[str, Callable[[list[str], list[str]], bool]] = {
    "few words": lambda words, lines: len(words) < 50,
    "word length": lambda words, lines: not 3 <= _mean_length(words) <= 10,
    "symbols": lambda words, lines: (
        sum(w.count("#") + w.count("...") + w.count("…") for w in words) > 0.1 * len(words)
    ),
    "bullets": lambda words, lines: _share(lines, lambda s: s.startswith(BULLETS)) > 0.9,
    "ellipses": lambda words, lines: _share(lines, lambda s: s.endswith(("...", "…"))) > 0.3,
    "no letters": lambda words, lines: (
        sum(any(map(str.isalpha, w)) for w in words) < 0.8 * len(words)
    ),
    "stop words": lambda words, lines: len(STOP_WORDS & {w.lower() for w in words}) < 2,
    "repeated lines": lambda words, lines: len(lines) - len(set(lines)) > 0.3 * len(lines),
    "text of repeated lines": lambda words, lines: (
        _characters(lines) - _characters(set(lines)) > 0.2 * _characters(lines)
    ),
    "repeated phrase": lambda words, lines: any(
        top_ngram_share(words, n) > limit for n, limit in TOP_NGRAM_SHARES.items()
    ),
    "repeated n-grams": lambda words, lines: any(
        duplicate_ngram_share(words, n) > limit for n, limit in DUPLICATE_NGRAM_SHARES.items()
    ),
}
"""Name -> whether a page of these words and lines breaks the rule."""


def gopher(text: str) -> str | None:
    """The name of the first rule that the page breaks, or None."""
    words, lines = text.split(), [line for line in text.split("\n") if line.strip()]
    return next((name for name, breaks in GOPHER_RULES.items() if breaks(words, lines)), None)
