"""How the time of a call grows with its input: for tests that nothing is quadratic."""

import time
from collections.abc import Callable


def growth(call: Callable[[str], object], piece: str, size: int = 10_000) -> float:
    """Processor time of ``call`` on four times the text over that on the text itself.

    Linear time gives 4, quadratic 16; held to be below 9. The best of seven of each, by turns, so
    that a busy machine does not matter.

    Args:
        piece: is repeated until the text has ``size`` characters.
    """
    texts = [(piece * (n // len(piece) + 1))[:n] for n in (size, 4 * size)]
    best = [float("inf")] * 2
    for _ in range(7):
        for i, text in enumerate(texts):
            started = time.process_time()
            for _ in range(3):
                call(text)
            best[i] = min(best[i], time.process_time() - started)
    return best[1] / best[0]
