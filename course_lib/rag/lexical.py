"""Search by words: TF-IDF, BM25, and the fusion of rankings for hybrid search.

``fit(texts)`` and ``search(queries, k) -> (scores, ids)``, where an id is the text's place in the
list. The libraries do the work; ``bm25_scores`` is the formula written out.
Simplified away: stemming, stop words, fields of different weight.
"""

import math
import unicodedata
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import regex

from course_lib.rag.extra import library

Tokenize = Callable[[str], list[str]]
_CJK = r"\p{Hangul}\p{Han}\p{Hiragana}\p{Katakana}"
_WORD = regex.compile(rf"(?V1)(?P<cjk>[{_CJK}]+)|[\w--[{_CJK}]]+")


def words(text: str) -> list[str]:
    """The words of a text as they are compared: in small letters, without signs.

    Runs of Korean, Chinese and Japanese letters become pairs of neighbours, as in Lucene's CJK
    analyzer, so that 최적화가 and 최적화 share two terms although a particle is attached.

    Example:
        >>> words("GPT-2의 최적화가")
        ['gpt', '2', '의', '최적', '적화', '화가']
    """
    terms = []
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        word = match[0]
        pairs = match["cjk"] and len(word) > 2
        terms += [word[i : i + 2] for i in range(len(word) - 1)] if pairs else [word]
    return terms


class LexicalIndex:
    """What TF-IDF and BM25 have in common: texts to terms, scores to the best k.

    Args:
        tokenize: text to terms, for texts and queries alike.
    """

    def __init__(self, tokenize: Tokenize = words):
        self.tokenize = tokenize
        self.known: set[str] = set()  # terms
        self.size = 0  # texts

    def fit(self, texts: Sequence[str]) -> "LexicalIndex":
        """Count the terms of all texts; those of an earlier call are forgotten.

        Raises:
            ValueError: no texts. (Empty ones may be among them: they score 0.)
            ImportError: the library is not installed.
        """
        terms = [self.tokenize(text) for text in _texts(texts)]
        if not terms:
            raise ValueError("There are no texts to search in: give one at least.")
        known = set().union(*terms)
        if known:  # the libraries cannot count nothing
            self._fit(terms)
        self.known, self.size = known, len(terms)
        return self

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best texts for each of Q queries, the best first; of equal ones the first.

        Returns:
            scores (Q, min(k, size)) in fp64 and ids (Q, min(k, size)). A text without a term of
            the query has score 0.

        Raises:
            ValueError: nothing fitted, k below 1.
        """
        if not self.size or k < 1:
            raise ValueError(
                f"A search for k={k} of {self.size} texts: call fit first, and ask for 1 or more."
            )
        scores = np.zeros((len(_texts(queries)), self.size))
        for row, query in zip(scores, queries):
            known = [term for term in self.tokenize(query) if term in self.known]
            if known:
                row[:] = self._scores(known)
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, ids, axis=1), ids

    def _fit(self, terms: list[list[str]]) -> None:
        raise NotImplementedError

    def _scores(self, query: list[str]) -> np.ndarray:
        """The score of each text for a query of known terms, (size,)."""
        raise NotImplementedError


class TFIDF(LexicalIndex):
    """Cosines of TF-IDF vectors, by scikit-learn.

    A term's weight in a text is tf · (ln((1 + N) / (1 + df)) + 1): how often it stands there, and
    how few of the N texts have it (df). Queries are weighed in the same way.
    """

    def _fit(self, terms):
        text = library("sklearn.feature_extraction.text", "TF-IDF")
        self.vectorizer = text.TfidfVectorizer(analyzer=_as_it_is)
        self.matrix = self.vectorizer.fit_transform(terms)  # (size, terms), rows of length 1 or 0

    def _scores(self, query):
        return (self.matrix @ self.vectorizer.transform([query]).T).toarray()[:, 0]


class BM25(LexicalIndex):
    """BM25 with Lucene's idf, which is never negative, by bm25s: the scores of ``bm25_scores``.

    Args:
        k1: how slowly a term's repetition saturates, >= 0. Usual are 1.2 to 2 (Robertson and
            Zaragoza, 2009).
        b: how much longer texts are held back, 0 (not at all) to 1.

    Raises:
        ValueError: k1 or b outside of their range.
    """

    def __init__(self, k1: float = 1.5, b: float = 0.75, tokenize: Tokenize = words):
        super().__init__(tokenize)
        _check_bm25(k1, b)
        self.k1, self.b = k1, b

    def _fit(self, terms):
        bm25s = library("bm25s", "BM25")
        self.index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene", dtype="float64")
        self.index.index(terms, show_progress=False)

    def _scores(self, query):
        return self.index.get_scores(query)


def bm25_scores(
    query: Sequence[str], texts: Sequence[Sequence[str]], k1: float = 1.5, b: float = 0.75
) -> list[float]:
    """The BM25 score of each text, term by term, for each time that the query has the term.

    idf · tf / (tf + k1 · (1 - b + b · length / mean length)) with idf = ln(1 + (N - df + 0.5) /
    (df + 0.5)): Robertson and Zaragoza, 2009, section 3.4, with the idf of Lucene (Kamphuis et
    al., 2020).

    Args:
        query: its terms.
        texts: the terms of each.

    Raises:
        ValueError: k1 or b outside of their range.

    Example: two texts of one term. "a" stands in one: ln(1 + 1.5 / 1.5) = 0.693, times 1 / 2.5.
        >>> [round(score, 3) for score in bm25_scores(["a"], [["a"], ["b"]])]
        [0.277, 0.0]
    """
    _check_bm25(k1, b)
    N, total = len(texts), sum(map(len, texts))
    scores = [0.0] * N
    for term in query:
        df = sum(term in text for text in texts)
        idf = math.log(1 + (N - df + 0.5) / (df + 0.5))
        for i, text in enumerate(texts):
            if tf := text.count(term):
                scores[i] += idf * tf / (tf + k1 * (1 - b + b * len(text) * N / total))
    return scores


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[Hashable]], k: float = 60
) -> tuple[list[float], list]:
    """One ranking of several: an item's score is the sum of 1 / (k + rank) over those that have it.

    Cormack, Clarke and Büttcher, 2009; ranks begin at 1. Only ranks count, so methods of whatever
    scale can be put together.

    Args:
        rankings: of ids that can be sorted, the best first. What a method did not find does not
            belong there: ``ids[scores > 0]`` of a search by words.
        k: >= 0; the larger, the less the top ranks stand out.

    Returns:
        (scores, ids), the best first, of equal ones the smallest id.

    Raises:
        ValueError: an id that stands twice in a ranking, a negative k.

    Example: 1/61 + 1/62 for "b", 1/61 for "c", 1/62 for "a".
        >>> scores, ids = reciprocal_rank_fusion([["b", "a"], ["c", "b"]])
        >>> ids, [round(score, 4) for score in scores]
        (['b', 'c', 'a'], [0.0325, 0.0164, 0.0161])
    """
    if not k >= 0:
        raise ValueError(f"The k of reciprocal rank fusion must be 0 or more, got {k}.")
    parts: dict[Hashable, list[float]] = {}
    for i, ranking in enumerate(rankings):
        if len(set(ranking)) < len(ranking):
            raise ValueError(f"Ranking {i} has an id twice: an item can only have one rank.")
        for rank, item in enumerate(ranking, start=1):
            parts.setdefault(item, []).append(1 / (k + rank))
    sums = {item: math.fsum(part) for item, part in parts.items()}  # the same in any order
    ids = sorted(sums, key=lambda item: (-sums[item], item))
    return [sums[item] for item in ids], ids


def _as_it_is(terms: list[str]) -> list[str]:
    return terms


def _texts(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        raise ValueError("Expected a list of texts, got one text: put it into a list.")
    return texts


def _check_bm25(k1: float, b: float) -> None:
    if not (k1 >= 0 and 0 <= b <= 1):
        raise ValueError(f"BM25 with k1={k1} and b={b}: expected k1 >= 0 and 0 <= b <= 1.")
