"""What the corpus never shows: one rule, used by the generators and by the evaluation alike.

An item is held out when a hash of its kind and its text says so. Nothing is stored: the generator
of training documents asks ``is_held_out`` and draws again, the evaluation asks and keeps. The hash
is keyed by nothing but the text, so a held-out item stays held out in every corpus seed.
"""

import zlib

SHARES = {
    "item": 8,          # one in 8 (task, word) pairs of the word tasks
    "list": 8,          # one in 8 word lists
    "problem": 12,      # one in 12 arithmetic problems, by operands and signs
    "person": 5,        # one in 5 people is never the subject of a two-hop question
    "question": 6,      # one in 6 (person, relation) pairs is never asked, only stated
    "guest": 5,         # one in 5 places (kind, town) no guest of the training asks about
    "name": 5,          # one in 5 invented names: newcomers and the evaluation's passages
}  # fmt: skip
"""Kind of item -> n, for one in n held out."""

HELD_OUT_COMPOSITIONS = frozenset({("first", "past"), ("last", "plural"), ("second", "opposite")})
"""(select, transform) pairs that no training list shows; their parts occur alone and in others."""
HELD_OUT_RELATION_PAIRS = frozenset({("friend", "colour")})
"""Pairs of relations that no training two-hop question joins."""


def is_held_out(kind: str, *parts: object) -> bool:
    """Whether the item named by ``parts`` is kept out of every training document.

    Args:
        kind: one of ``SHARES``.
        parts: what names the item, e.g. ``("plural", "dog")``.

    Raises:
        KeyError: an unknown kind.
    """
    text = "\x1f".join([kind, *map(str, parts)])
    return zlib.crc32(text.encode()) % SHARES[kind] == 0
