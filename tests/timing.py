"""How the time of a call grows with its input: for tests that nothing is quadratic."""

import time
from collections.abc import Callable


def growth(call: Callable[[str], object], piece: str, size: int = 10_000) -> float:
    """Processor time of ``call`` on four times the text over that on the text itself.

    Linear time gives 4, quadratic 16; held to be below 9. The best of each, by turns, so that a
    busy machine does not matter: of seven, and of up to 35 while the quotient is above 8. Texts are
    long enough to take a millisecond: below that it is the memory's allocation that is timed.

    Args:
        piece: is repeated until the text has ``size`` characters, or more.
    """

    def text(length: int) -> str:
        return (piece * (length // len(piece) + 1))[:length]

    while size < 10**6 and _seconds(call, text(size)) < 1e-3:
        size *= 4
    texts = [text(size), text(4 * size)]
    best = [float("inf")] * 2
    for turn in range(35):
        if turn >= 7 and best[1] < 8 * best[0]:
            break
        best = [min(b, _seconds(call, t)) for b, t in zip(best, texts)]
    return best[1] / best[0]


def _seconds(call: Callable[[str], object], text: str) -> float:
    started = time.process_time()
    for _ in range(3):
        call(text)
    return time.process_time() - started
