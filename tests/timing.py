"""How the time of a call grows with its input: for tests that nothing is quadratic."""

import time
from collections.abc import Callable


def growth(call: Callable[[str], object], piece: str, size: int = 10_000) -> float:
    """Processor time of ``call`` on four times the text over that on the text itself.

    Linear time gives 4, quadratic 16; held to be below 9. The best of each, by turns, so that a
    busy machine does not matter: of seven, and of up to 35 while the quotient is above 8.

    Args:
        piece: is repeated until the text has ``size`` characters.
    """
    texts = [(piece * (n // len(piece) + 1))[:n] for n in (size, 4 * size)]
    best = [float("inf")] * 2
    for turn in range(35):
        if turn >= 7 and best[1] < 8 * best[0]:
            break
        for i, text in enumerate(texts):
            started = time.process_time()
            for _ in range(3):
                call(text)
            best[i] = min(best[i], time.process_time() - started)
    return best[1] / best[0]
