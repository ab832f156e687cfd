"""The Bradley-Terry model: a strength for each item, behind the results of comparing them in pairs.

Each of two items is preferred with the softmax over their strengths, which is the logistic function
of the difference (Bradley and Terry, 1952):

    P(i beats j) = exp(b_i) / (exp(b_i) + exp(b_j)) = 1 / (1 + exp(b_j - b_i)) = σ(b_i - b_j)

Differences alone count, so a shift of all strengths changes nothing; here they add up to 0. A
reward model is the same with b a function of the text (``course_lib.reward``).
One number an item puts the items in an order. Rock, paper and scissors have none: their fitted
strengths are equal, and the cycle is not seen. A tie counts as half a win for each. That is right
on average, but half wins vary less than wins and losses: standard errors then come out too large.
Simplified away: strengths of ties and of playing first (Davidson, 1970); priors, which would give
finite strengths where the maximum likelihood has none.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

MAX_STEPS = 200
TOLERANCE = 1e-10
"""Newton's method makes its last step when that promises no more than this, in nats: about 1e-5
standard errors, which the last step squares."""
ROUNDING = 1e-13
"""Of the log-likelihood, by which it may seem to fall where it does not."""


@dataclass(frozen=True)
class Strengths:
    """Strengths by maximum likelihood, and how far they may be off.

    Both are float64: ``strengths`` (n,), which add up to 0, and ``covariance`` (n, n), the inverse
    of the observed information among strengths that add up to 0.
    """

    strengths: Tensor
    covariance: Tensor

    @property
    def standard_errors(self) -> Tensor:
        """(n,): of each strength, as its distance from the mean of all."""
        return self.covariance.diagonal().clamp(min=0).sqrt()


def win_probability(strengths: Tensor) -> Tensor:
    """How often each item is preferred to each other one.

    Args:
        strengths: (n,).

    Returns:
        (n, n): entry i, j is P(i beats j), and 1/2 where i = j.

    Raises:
        ValueError: another shape, or strengths that are not finite.

    Example: strengths log 3 and 0 have odds of 3 to 1.
        >>> win_probability(torch.tensor([3.0, 1.0]).log())
        tensor([[0.5000, 0.7500],
                [0.2500, 0.5000]])
    """
    if strengths.ndim != 1 or not len(strengths) or not strengths.isfinite().all():
        raise ValueError(
            f"strengths must be (n,), one finite number an item, got shape "
            f"{tuple(strengths.shape)} and {strengths.flatten()[:5].tolist()}."
        )
    return torch.sigmoid(strengths[:, None] - strengths[None, :])


def simulate(strengths: Tensor, games: int, generator: Generator | None = None) -> Tensor:
    """Each item is compared with each other one ``games`` times.

    Args:
        strengths: (n,).
        generator: on the CPU; torch's own when None.

    Returns:
        wins (n, n), float64: entry i, j is how often i beat j; with entry j, i it makes ``games``.

    Raises:
        ValueError: fewer than two items, or fewer than one game.
    """
    if strengths.ndim != 1 or len(strengths) < 2 or games < 1:
        raise ValueError(
            f"A tournament needs strengths (n,) of two items or more, and at least one game a "
            f"pair, got shape {tuple(strengths.shape)} and {games} games."
        )
    chances = win_probability(strengths.detach().cpu().double())  # (n, n)
    won = torch.binomial(torch.full_like(chances, games), chances, generator).triu(1)  # i < j
    return won + (games - won).triu(1).T


def fit(wins: Tensor) -> Strengths:
    """Strengths by maximum likelihood, by Newton's method.

    The log-likelihood, Σ_ij wins_ij · log σ(b_i - b_j), is concave. Its maximum is finite and the
    only one if and only if, however the items are split in two, each part won against the other
    (Ford, 1957).

    Args:
        wins: (n, n), entry i, j is how often i beat j; 0 on the diagonal. A tie is half a win of
            each.

    Returns:
        On the CPU, see ``Strengths``.

    Raises:
        ValueError: not a square of two items or more; counts that are negative or not finite; no
            finite maximum, and then the error names the items that never won against the others.
        ArithmeticError: no convergence, which numbers of ordinary size do not bring about.

    Example: 30 to 10 are odds of 3, so the difference is log 3 = 1.0986. Its variance is
    1/30 + 1/10, and a strength is half of it: √(.1333) / 2 = .1826.
        >>> found = fit(torch.tensor([[0, 30], [10, 0]]))
        >>> [round(b, 4) for b in found.strengths.tolist()]
        [0.5493, -0.5493]
        >>> [round(error, 4) for error in found.standard_errors.tolist()]
        [0.1826, 0.1826]
    """
    wins = _checked(wins)
    n, games = len(wins), wins + wins.T  # (n, n)
    strengths = wins.new_zeros(n)
    value = _log_likelihood(strengths, wins)
    for _ in range(MAX_STEPS):
        chances = win_probability(strengths)  # (n, n)
        gradient = (wins * chances.T - wins.T * chances).sum(1)  # (n,): won minus expected
        covariance = _inverse(_information(games, chances))
        step = covariance @ gradient  # (n,)
        gain = float(step @ gradient) / 2  # of a parabola
        if gain <= TOLERANCE:
            strengths = strengths + step
            information = _information(games, win_probability(strengths))
            return Strengths(strengths - strengths.mean(), _inverse(information))
        size, floor = 1.0, value - ROUNDING * abs(value)
        # Halved until the likelihood rises by a quarter of its slope at least.
        while (after := _log_likelihood(strengths + size * step, wins)) < floor + size * gain / 2:
            size /= 2
            if size < 1e-9:
                raise ArithmeticError(_unconverged(strengths))
        strengths, value = strengths + size * step, after
    raise ArithmeticError(_unconverged(strengths))


def _log_likelihood(strengths: Tensor, wins: Tensor) -> Tensor:
    return (wins * F.logsigmoid(strengths[:, None] - strengths[None, :])).sum()


def _information(games: Tensor, chances: Tensor) -> Tensor:
    """Minus the second derivative of the log-likelihood, (n, n): a graph's Laplacian, whose edges
    weigh n_ij · p_ij · p_ji. It depends on the results by the strengths alone."""
    weights = games * chances * chances.T
    return torch.diag(weights.sum(1)) - weights


def _inverse(information: Tensor) -> Tensor:
    """Its inverse among vectors that add up to 0; constant vectors, its null space, go to 0.

    With c · J/n added, J all ones, the matrix has full rank, and in the inverse that part is
    J/(cn), to be taken off again. c is of the size of the rest.
    """
    n, c = len(information), information.diagonal().mean()
    mean = information.new_full((n, n), 1 / n)
    return torch.linalg.inv(information + c * mean) - mean / c


def _unconverged(strengths: Tensor) -> str:
    return (
        f"Newton's method did not converge; the strengths stood at {strengths.tolist()}. Look for "
        "items that hardly ever won or lost, and compare them more often or leave them out."
    )


def _checked(wins: Tensor) -> Tensor:
    """The counts as float64 on the CPU, after a look at whether they have strengths."""
    wins = torch.as_tensor(wins).detach().cpu().double()
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1] or len(wins) < 2:
        raise ValueError(
            f"wins must be (n, n) with two items or more, got shape {tuple(wins.shape)}."
        )
    if not wins.isfinite().all() or (wins < 0).any() or wins.diagonal().any():
        raise ValueError(
            "wins must be counts: finite, none negative, and 0 on the diagonal, for no item is "
            f"compared with itself; got\n{wins}"
        )
    beats = (wins > 0) | torch.eye(len(wins), dtype=torch.bool)  # (n, n)
    while not torch.equal(further := beats.double() @ beats.double() > 0, beats):
        beats = further  # directly, or over others who were beaten
    for reached in beats:
        if not reached.all():
            weak, others = reached.nonzero()[:, 0].tolist(), (~reached).nonzero()[:, 0].tolist()
            raise ValueError(
                f"The items {weak} never won against any of the items {others}, so the likelihood "
                "rises for ever as their strengths move apart, or does not depend on the distance "
                "(Ford, 1957). Compare more, leave items out, or add half a win to each pair."
            )
    return wins
