"""Near-duplicates: MinHash signatures (rensa) and locality-sensitive hashing in bands.

Broder, "On the Resemblance and Containment of Documents", 1997; the bands of Leskovec, Rajaraman
and Ullman, "Mining of Massive Datasets", section 3.4. A page goes if any page before it shares one
band: no pair is compared in full, as in FineWeb.
Simplified away: the check of candidates by their exact similarity (Lee et al., 2022); groups of
duplicates that are linked only through a later page.
"""

import re
import sys

BANDS, ROWS = 18, 6
"""Two pages of Jaccard similarity s share a band with probability 1 - (1 - s^6)^18, which is 0.5 at
s = 0.58, 0.02 at 0.32 and 0.98 at 0.76. A copy in which one word in 25 was changed has s of about
0.6; FineWeb's 14 bands of 8 (Penedo et al., 2024), with 0.5 at 0.68, pass most of these."""
SHINGLE = 5


def shingles(text: str) -> set[str]:
    """All sequences of five words, lower-cased, punctuation removed."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + SHINGLE]) for i in range(max(len(words) - SHINGLE + 1, 1))}


def band_keys(text: str, bands: int = BANDS, rows: int = ROWS) -> tuple[int, ...]:
    """One key a band of the MinHash signature: pages that share a key are near-duplicates.

    Returns:
        ``bands`` integers of 64 bits, the same in every process.
    """
    from rensa import RMinHash

    signature = RMinHash(num_perm=bands * rows, seed=1)
    signature.update(sorted(shingles(text)))
    digest = signature.digest()
    return tuple(hash((i, *digest[i * rows : (i + 1) * rows])) for i in range(bands))


class DuplicateIndex:
    """The keys of all pages kept so far: the only thing that grows with the crawl.

    About 1.7 kB a kept page: 18 integers of 36 bytes and their places in the hash table.
    """

    def __init__(self):
        self.keys: set[int] = set()

    def is_new(self, bands: tuple[int, ...]) -> bool:
        """Whether no earlier page shares a band; if so, the page is entered."""
        if not self.keys.isdisjoint(bands):
            return False
        self.keys.update(bands)
        return True

    @property
    def megabytes(self) -> float:
        return (sys.getsizeof(self.keys) + 36 * len(self.keys)) / 1e6
