"""The evaluation's items must not be in the data: a page that has one is dropped whole.

Simplified away: paraphrased items.
"""

import re
from collections.abc import Iterable, Iterator

NGRAM = 13
"""Words that a page and an item must share in a row (GPT-3, Brown et al., 2020, appendix C)."""


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+|[-+=]", text.lower())


def _grams(words: list[str]) -> Iterator[str]:
    for i in range(len(words) - NGRAM + 1):
        yield " ".join(words[i : i + NGRAM])


def _plain(line: str) -> str:
    return " ".join(_words(re.sub(r"^\s*Q(?:uestion)?:", "", line)))


class Contamination:
    """What tells that a page contains an evaluation item.

    Long items are known by their sequences of 13 words; of a shorter one the question must stand on
    the page as a line or a sentence.

    Args:
        queries: the items' prompts, without solved examples.
    """

    def __init__(self, queries: Iterable[str]):
        self.known: set[str] = set()
        for query in queries:
            lines = query.removesuffix("\nA:").strip().split("\n")
            words = _words(" ".join(lines))
            if len(words) >= NGRAM:
                self.known.update(_grams(words))
            else:
                self.known.add(_plain(lines[-1]))

    def found_in(self, text: str) -> bool:
        if any(gram in self.known for gram in _grams(_words(text))):
            return True
        pieces = re.split(r"\n|(?<=[.?!])\s", text)
        return any(_plain(piece) in self.known for piece in pieces if piece)


def evaluation_items(seed: int = 0, items: int = 200) -> list:
    """The items that ``course_lib.world.evaluate`` draws with this seed, figure after figure."""
    from course_lib.world.evaluate import FIGURES, draw_items

    return [item for name in FIGURES for item in draw_items(name, seed, items)]


def leak_texts(items: Iterable) -> list[str]:
    """Items with a question, as they stand on a page that gives them away with their answers."""
    return [f"{item.query.removesuffix('A:')}A: The answer is {item.answer}."
            for item in items if item.query.endswith("?\nA:")]  # fmt: skip
