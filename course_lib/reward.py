"""The reward model: a score for each response, learnt from rankings of responses.

It is a causal language model with a scalar on every token (``models.WithScalarHead``). The score is
the scalar of the last token, which has read all of prompt and response (Stiennon et al., 2020;
Ouyang et al., 2022, section 3.5). Of two responses one is preferred with the logistic function of
the difference of their scores, as in the Bradley-Terry model (``course_lib.bradley_terry``), so
scores have no zero point of their own: ``centre`` gives them one.
All pairs of a ranking are learnt from one pass over its responses. They hang together: spread over
several batches they made InstructGPT's reward models overfit.
Simplified away: ensembles, rewards of single steps, an auxiliary loss on the language.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.rankings import (
    ABSENT,
    RankedBatch,
    collate_rankings,
    encode_completion,
    ranking_to_pairs,
)
from course_lib.rows import pad_rows
from course_lib.runtime import evaluation_mode, model_device
from course_lib.training import counted

__all__ = [
    "ABSENT", "RankedBatch", "accuracy", "bradley_terry_loss", "calibration", "centre",
    "collate_rankings", "encode_completion", "expected_calibration_error", "last_token_scores",
    "ranking_loss", "ranking_to_pairs", "score_rows", "scorer",
]  # fmt: skip


# --- the loss -----------------------------------------------------------------------------------


def bradley_terry_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, *, margin: Tensor | float | None = None,
    centring: float = 0.0,
) -> Tensor:  # fmt: skip
    """-log σ(r_w - r_l - margin) + centring · (r_w + r_l)², the negative log-likelihood of a pair.

    The first term is equation 1 of Ouyang et al. (2022), its margin is equation 2 of Touvron et
    al. (2023, "Llama 2"), and the second is equation 2 of Eisenstein et al. (2023), which holds
    the scores near 0, where the first does not care. It is finite wherever the scores are:
    log σ(-100) is -100, and not the logarithm of a rounded 0.

    Args:
        chosen_scores, rejected_scores: (B,), of the preferred response of each pair and the other.
        margin: (B,) or one number, by how much r_w is to lead; none when None.
        centring: weight of the second term; 0.01 is trl's advice.

    Returns:
        (B,), in nats; float32 or wider.

    Raises:
        ValueError: shapes that are not (B,) or differ, no pair, a margin of another shape.
        FloatingPointError: scores or margins that are not finite.

    Example: scores that are equal cost log 2, a lead of 1 costs log(1 + 1/e).
        >>> bradley_terry_loss(torch.tensor([2.0, 1.0]), torch.tensor([2.0, 0.0]))
        tensor([0.6931, 0.3133])
    """
    chosen, rejected = _pairs(chosen_scores, rejected_scores)
    lead = chosen - rejected  # (B,)
    if margin is not None:
        margin = torch.as_tensor(margin, dtype=lead.dtype, device=lead.device)
        if margin.ndim and margin.shape != lead.shape:
            raise ValueError(
                f"margin must be one number or {tuple(lead.shape)}, one a pair, got "
                f"{tuple(margin.shape)}."
            )
        lead = lead - _finite(margin, "margin")
    loss = -F.logsigmoid(lead)
    return loss + centring * (chosen + rejected) ** 2 if centring else loss


def ranking_loss(
    reward_model: nn.Module, batch: RankedBatch, *, margin: float = 0.0,
    centring: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """``bradley_terry_loss`` on all pairs of every ranking, from one pass over all responses.

    Each ranking counts once, however many pairs it has: 1 / (n choose 2), as in equation 1 of
    Ouyang et al. (2022), or one over its pairs where some tie.

    Args:
        reward_model: (input_ids, attention_mask) -> (rows, T), a scalar on every token.
        batch: of ``collate_rankings``.
        margin: by how much the better response is to lead, for each rank between the two.
        centring: see ``bradley_terry_loss``.

    Returns:
        The mean over the rankings, for ``training.train``, and as means over rankings of means
        over pairs ``accuracy``, how often the better response has the higher score, ``margin``,
        r_w - r_l, and ``score``, (r_w + r_l) / 2.

    Raises:
        ValueError: a ranking without a pair.
        FloatingPointError: scores that are not finite.
    """
    ranks = batch["ranks"]  # (B, n)
    present = ranks != ABSENT  # (B, n)
    mask = batch["attention_mask"][present]  # (N, T): N responses in all
    token_scores = reward_model(batch["input_ids"][present], attention_mask=mask)  # (N, T)
    found = last_token_scores(token_scores, mask)  # (N,)
    scores = found.new_zeros(ranks.shape).masked_scatter(present, found)  # (B, n)
    better = (ranks[:, :, None] < ranks[:, None, :]) & present[:, :, None]  # (B, n, n)
    pairs = better.sum((1, 2))  # (B,)
    if not pairs.all():
        raise ValueError("A ranking of the batch has no pair: see collate_rankings.")
    which, w, l = better.nonzero(as_tuple=True)  # (P,): P pairs in all  # noqa: E741
    chosen, rejected = scores[which, w], scores[which, l]  # (P,)
    asked = margin * (ranks[which, l] - ranks[which, w]) if margin else None  # (P,)
    losses = bradley_terry_loss(chosen, rejected, margin=asked, centring=centring)  # (P,)
    weights = 1 / pairs[which]  # (P,): those of a ranking add up to 1

    def mean(values: Tensor) -> Tensor:
        return (weights * values.detach()).sum() / len(ranks)

    return counted((weights * losses).sum(), len(ranks)), {
        "accuracy": mean(chosen > rejected),
        "margin": mean(chosen - rejected),
        "score": mean((chosen + rejected) / 2),
    }


def _finite(values: Tensor, name: str) -> Tensor:
    if not values.isfinite().all():
        raise FloatingPointError(
            f"{name} must be finite, got {values[~values.isfinite()][:5].tolist()}, "
            f"{int((~values.isfinite()).sum())} of {values.numel()}. Look at what made them."
        )
    return values


def _pairs(chosen_scores: Tensor, rejected_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or wider, after a look at whether they are one score a response."""
    shapes = tuple(chosen_scores.shape), tuple(rejected_scores.shape)
    if len(shapes[0]) != 1 or shapes[0] != shapes[1] or not shapes[0][0]:
        raise ValueError(
            "chosen_scores and rejected_scores must both be (B,), one score a response and at "
            f"least one pair, got {shapes[0]} and {shapes[1]}."
        )
    dtype = torch.promote_types(chosen_scores.dtype, rejected_scores.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    return (_finite(chosen_scores.to(dtype), "chosen_scores"),
            _finite(rejected_scores.to(dtype), "rejected_scores"))  # fmt: skip


# --- scores -------------------------------------------------------------------------------------


def last_token_scores(token_scores: Tensor, attention_mask: Tensor) -> Tensor:
    """The score of each row: the scalar of its last token.

    It is found by the mask, whatever ids stand there, and however the rows are padded.

    Args:
        token_scores: (B, T).
        attention_mask: (B, T), 1 = a token of prompt or response.

    Returns:
        (B,).

    Raises:
        ValueError: shapes that differ, a row without a token.

    Example: padded on the right, and on the left.
        >>> last_token_scores(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        ...                   torch.tensor([[1, 1, 0], [0, 1, 1]]))
        tensor([2., 6.])
    """
    if token_scores.ndim != 2 or token_scores.shape != attention_mask.shape:
        raise ValueError(
            "token_scores and attention_mask must both be (B, T), got "
            f"{tuple(token_scores.shape)} and {tuple(attention_mask.shape)}."
        )
    kept = attention_mask.bool()  # (B, T)
    if not kept.any(1).all():
        empty = (~kept.any(1)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"Rows {empty} have no token that is kept, so no last one: leave them out."
        )
    last = kept.shape[1] - 1 - kept.int().flip(1).argmax(1)  # (B,)
    return token_scores.gather(1, last[:, None])[:, 0]


@torch.no_grad()
def score_rows(
    reward_model: nn.Module, rows: Sequence[Sequence[int]], pad_token_id: int,
    batch_size: int = 128,
) -> Tensor:  # fmt: skip
    """The score of each row, the model in evaluation mode and without gradients.

    Args:
        rows: token ids of prompt and response, see ``encode_completion``.
        batch_size: rows a pass; they are sorted by length, to read less padding.

    Returns:
        (B,), float32 on the CPU, in the order of the rows.

    Raises:
        ValueError: no rows, one without tokens.
        FloatingPointError: a score that is not finite.
    """
    if not len(rows) or not all(len(row) for row in rows):
        raise ValueError(
            f"{len(rows)} rows of lengths {[len(row) for row in rows][:10]}: expected at least "
            "one, and at least one token in each."
        )
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores = torch.empty(len(rows))
    with evaluation_mode(reward_model):
        for start in range(0, len(rows), batch_size):
            some = order[start : start + batch_size]
            ids = pad_rows([rows[i] for i in some], pad_token_id)  # (b, T)
            mask = pad_rows([[1] * len(rows[i]) for i in some], 0)
            ids, mask = ids.to(model_device(reward_model)), mask.to(model_device(reward_model))
            found = last_token_scores(reward_model(ids, attention_mask=mask), mask)  # (b,)
            scores[some] = found.float().cpu()
    return _finite(scores, "The reward model's scores")


def scorer(
    reward_model: nn.Module, pad_token_id: int, batch_size: int = 128
) -> Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], Tensor]:
    """The reward model as a function (prompts, responses) -> scores (B,), which PPO asks for.

    Prompts and responses are rows of token ids, as many of each; a response has its end token
    where the model ended it. See ``score_rows``.
    """

    def score(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Tensor:
        if len(prompts) != len(responses) or not all(len(response) for response in responses):
            raise ValueError(
                f"{len(prompts)} prompts and {len(responses)} responses of lengths "
                f"{[len(response) for response in responses][:10]}: expected one response a "
                "prompt, and at least one token in each."
            )
        rows = [[*prompt, *response] for prompt, response in zip(prompts, responses)]
        return score_rows(reward_model, rows, pad_token_id, batch_size)

    return score


@torch.no_grad()
def centre(reward_model: nn.Module, mean: float) -> None:
    """Take ``mean`` off every score that the model gives, by the bias of its head.

    The loss knows differences alone. InstructGPT's scores have mean 0 on the demonstrations of
    labellers (Ouyang et al., 2022, section 3.5): ``centre(model, score_rows(...).mean())``.

    Raises:
        FloatingPointError: the mean is not finite.
    """
    bias = reward_model.head.bias
    bias -= _finite(torch.as_tensor(mean, dtype=bias.dtype, device=bias.device), "The mean")


# --- figures ------------------------------------------------------------------------------------


def accuracy(chosen_scores: Tensor, rejected_scores: Tensor) -> float:
    """The share of pairs whose preferred response has the higher score. A tie is not right.

    Args:
        chosen_scores, rejected_scores: (B,).

    Raises:
        See ``bradley_terry_loss``.

    Example: one right, one tie, one wrong.
        >>> round(accuracy(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])), 4)
        0.3333
    """
    chosen, rejected = _pairs(chosen_scores, rejected_scores)
    return float((chosen > rejected).double().mean())


def calibration(
    margins: Tensor, wins: Tensor, bins: int = 10
) -> list[tuple[float, float, int]]:  # fmt: skip
    """How often a response wins, beside how often the model says so (Guo et al., 2017).

    Args:
        margins: (B,), r_i - r_j of pairs in any order: where i is always the preferred one, all
            are won, and nothing is learnt about what a probability below 1/2 means.
        wins: (B,), whether i was preferred; 1/2 for a tie.
        bins: of equal width, from 0 to 1, of the predicted probability σ(r_i - r_j).

    Returns:
        Of each bin with a pair in it, the lowest first: mean predicted probability, share won,
        number of pairs.

    Raises:
        ValueError: shapes that are not (B,) or differ, no pair, no bin, wins outside 0..1.
        FloatingPointError: margins or wins that are not finite.

    Example: odds of 3 to 1 three times, two of them won, and the reverse once.
        >>> margins = torch.tensor([3.0, 3.0, 3.0, 1 / 3]).log()
        >>> [tuple(round(x, 2) for x in row)
        ...  for row in calibration(margins, torch.tensor([1, 1, 0, 0]), bins=2)]
        [(0.25, 0.0, 1), (0.75, 0.67, 3)]
    """
    margins, wins = _pairs(margins.double(), wins.double())
    if bins < 1 or wins.min() < 0 or wins.max() > 1:
        raise ValueError(f"wins must lie in 0..1 and bins be at least 1, got {bins} bins.")
    predicted = torch.sigmoid(margins)  # (B,)
    places = (predicted * bins).long().clamp(max=bins - 1)  # (B,)
    rows = []
    for place in places.unique().tolist():
        here = places == place
        rows.append((float(predicted[here].mean()), float(wins[here].mean()), int(here.sum())))
    return rows


def expected_calibration_error(rows: Sequence[tuple[float, float, int]]) -> float:
    """Mean distance between the two columns of ``calibration``, over pairs (Guo et al., 2017, eq.
    3); 0 is best.

    Example: (1 · .2 + 3 · .1) / 4
        >>> round(expected_calibration_error([(0.2, 0.0, 1), (0.7, 0.8, 3)]), 4)
        0.125
    """
    total = sum(count for *_, count in rows)
    return sum(count * abs(predicted - won) for predicted, won, count in rows) / total
