"""From what a model wrote to a figure with its interval: parse, grade, count.

Shares of items have Wilson's interval, means over seeds have Student's. Needs no torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ANSWER_MARK = "The answer is"
END = "<|end|>"


def cut(text: str, stop: str | None) -> str:
    """What stands before ``stop``; all of it when None."""
    return text.split(stop)[0] if stop else text


def parse_answer(completion: str, mark: str = ANSWER_MARK, stop: str | None = "\n") -> str:
    """The answer in a completion: what follows ``mark`` last, else the first line.

    Args:
        stop: only what stands before it is read; None = all of it, for chains of several lines.

    Returns:
        One line without its final stop; "" where there is no answer.

    Example:
        >>> parse_answer(" 12 + 3 = 15. The answer is 15.")
        '15'
    """
    text = cut(completion.split(END)[0], stop)
    if mark in text:
        text = text.split(mark)[-1]
    return text.split("\n")[0].strip().rstrip(".").strip()


@dataclass(frozen=True)
class Interval:
    """``centre`` ± ``half_width``."""

    centre: float
    half_width: float

    @property
    def low(self) -> float:
        return max(self.centre - self.half_width, 0.0)

    @property
    def high(self) -> float:
        return min(self.centre + self.half_width, 1.0)


def wilson(share: float, items: int, z: float = 1.96) -> Interval:
    """The interval of a share seen in ``items`` independent items (Wilson, 1927).

    Its centre is drawn towards 1/2, so that it has a width at 0 and at 1 too.

    Args:
        share: in 0..1.
        z: quantile of the normal distribution; 1.96 gives 95 %.

    Raises:
        ValueError: no items, or a share outside 0..1.

    Example: z² = n = 4, so the centre is half-way from 0 to 1/2, and the width reaches 0.
        >>> wilson(0.0, 4, z=2.0)
        Interval(centre=0.25, half_width=0.25)
    """
    if items < 1 or not 0 <= share <= 1:
        raise ValueError(
            f"A share must lie in 0..1 and come from at least one item, got {share} of {items}."
        )
    grown = 1 + z * z / items
    spread = math.sqrt(share * (1 - share) / items + (z / items / 2) ** 2)
    return Interval((share + z * z / items / 2) / grown, z / grown * spread)


@dataclass(frozen=True)
class Result:
    """Predictions beside the right answers."""

    predictions: tuple[str, ...]
    hits: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.hits) / len(self.hits)

    @property
    def interval(self) -> Interval:
        """The accuracy's 95 % interval; its items count as drawn independently."""
        return wilson(self.accuracy, len(self.hits))

    def __str__(self) -> str:
        """E.g. ``0.750 (95 %: 0.301 to 0.954, n = 4)``."""
        low, high = self.interval.low, self.interval.high
        return f"{self.accuracy:.3f} (95 %: {low:.3f} to {high:.3f}, n = {len(self.hits)})"


def grade(predictions: Sequence[str], answers: Sequence[str]) -> Result:
    """Exact match, letter by letter.

    Raises:
        ValueError: no predictions, or not one for each answer.
    """
    if not predictions or len(predictions) != len(answers):
        raise ValueError(
            f"{len(predictions)} predictions for {len(answers)} answers: give one for each, and "
            "at least one."
        )
    return Result(tuple(predictions), tuple(p == a for p, a in zip(predictions, answers)))


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): whether any of k samples is right, where c of n were.

    The unbiased estimator (Chen et al., 2021, equation 1), as a product, for the binomials are
    large numbers. 1 - (1 - c / n)^k, which draws the same sample more than once, is too low.

    Args:
        n: samples drawn.
        c: those that are right.
        k: at most n.

    Raises:
        ValueError: c or k that do not fit n.

    Example: of three samples one is right; two of the three pairs have it.
        >>> round(pass_at_k(3, 1, 2), 4)
        0.6667
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(
            f"Of n={n} samples c={c} are right and k={k} are taken: expected 0 <= c <= n and "
            "1 <= k <= n."
        )
    if n - c < k:
        return 1.0  # more are taken than are wrong
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def mean_interval(values: Sequence[float], level: float = 0.99) -> tuple[float, float, float]:
    """(mean, low, high): Student's t-interval of the mean of independent runs (Student, 1908).

    mean ± t(n - 1) · s / √n, with s the standard deviation over n - 1.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    mean, spread, t = _spread(values, level)
    half = t * spread / math.sqrt(len(values))
    return mean, mean - half, mean + half


def prediction_interval(
    values: Sequence[float], level: float, least_spread: float = 0.0
) -> tuple[float, float]:
    """(low, high): where one more run falls with probability ``level``.

    mean ± t(n - 1) · s · √(1 + 1/n): a new value has its own spread beside that of the mean.

    Args:
        least_spread: a standard deviation below which s is not believed. Eight runs that all got
            every item right have s = 0, and the ninth may still miss one.
    """
    mean, spread, t = _spread(values, level)
    half = t * max(spread, least_spread) * math.sqrt(1 + 1 / len(values))
    return mean - half, mean + half


def _spread(values: Sequence[float], level: float) -> tuple[float, float, float]:
    """Mean, standard deviation, and the two-sided quantile of t that belongs to the level."""
    from scipy.stats import t

    values = [float(value) for value in values]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"An interval needs two finite values or more, got {values}.")
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return mean, spread, float(t.ppf((1 + level) / 2, len(values) - 1))
