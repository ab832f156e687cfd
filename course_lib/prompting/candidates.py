"""Candidate answers compared: log-probabilities, summed or per token, calibrated.

Simplified away: reading a prompt once for all its candidates, which a key-value cache
would allow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course_lib.completion import context_size, encode, watched
from course_lib.rollout import response_logps

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Inputs that say nothing (Zhao et al., 2021, section 4): what a model answers to them is bias."""


@dataclass(frozen=True)
class CandidateLogps:
    """summed: (N, C), log p(candidate | prompt), summed over its tokens; lengths: (N, C), how many
    tokens those are."""

    summed: Tensor
    lengths: Tensor

    @property
    def per_token(self) -> Tensor:
        """(N, C): a sum falls with every token, the mean does not punish long candidates."""
        return self.summed / self.lengths


def candidate_logps(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[str],
    candidates: Sequence[str] | Sequence[Sequence[str]],
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> CandidateLogps:
    """How likely the model writes each candidate after each prompt.

    Prompt and candidate are tokenised apart, as when the model writes the candidate itself.

    Args:
        model: follows transformers' calling convention; a function from text to text has no
            probabilities to give.
        candidates: C texts for all prompts, or for each prompt its own C, as the model would write
            them: usually with a space in front.

    Raises:
        ValueError: no candidates, an empty or repeated one, unequal numbers of them, an empty
            prompt, or a pair longer than the context.
        TypeError: a model that is a function from text to text.
    """
    if not isinstance(model, nn.Module) or tokenizer is None:
        raise TypeError(
            "Candidates are compared by the model's logits: give a model that follows "
            "transformers' calling convention, and its tokenizer."
        )
    own = _each(candidates, len(prompts))
    _check_candidates(own, len(prompts))
    rows = [
        (prompt, tokenizer(text, add_special_tokens=False)["input_ids"], text)
        for prompt, texts in zip(encode(tokenizer, prompts), own)
        for text in texts
    ]
    for prompt, answer, text in rows:
        if not answer:
            raise ValueError(f"Candidate {text!r} has no token: there is nothing to compare.")
        if len(prompt) + len(answer) > context_size(model):
            raise ValueError(
                f"A prompt of {len(prompt)} tokens and candidate {text!r} of {len(answer)} exceed "
                f"the context of {context_size(model)}: shorten the prompt."
            )
    sums = [
        response_logps(model, *zip(*[(p, a) for p, a, _ in rows[i : i + batch_size]]))
        for i in watched(range(0, len(rows), batch_size), progress, "candidates")
    ]
    lengths = torch.tensor([len(a) for _, a, _ in rows])
    return CandidateLogps(torch.cat(sums).view(len(own), -1), lengths.view(len(own), -1))


def _each(candidates, prompts: int) -> list[list[str]]:
    """A list of candidates for each prompt."""
    if isinstance(candidates, str):
        raise ValueError(f"candidates is one text, {candidates!r}: put it into a list.")
    if all(isinstance(c, str) for c in candidates):
        return [list(candidates)] * prompts
    if any(isinstance(c, str) for c in candidates):
        raise ValueError("candidates mix texts and lists: give either texts, or a list a prompt.")
    return [list(c) for c in candidates]


def _check_candidates(own: list[list[str]], prompts: int) -> None:
    """Raise a ValueError where the candidates, a list for each prompt, cannot be compared."""
    if not prompts or len(own) != prompts:
        raise ValueError(
            f"{len(own)} lists of candidates for {prompts} prompts: give one list for all, or one "
            "for each of at least one prompt."
        )
    if not own[0] or len({len(texts) for texts in own}) > 1:
        raise ValueError(
            f"The prompts have {sorted({len(texts) for texts in own})} candidates: every prompt "
            "needs the same number, at least one."
        )
    for texts in own:
        if len(set(texts)) < len(texts):
            raise ValueError(f"Candidates repeat in {texts}: name each once.")


def choose(logps: Tensor, candidates: Sequence[str] | Sequence[Sequence[str]]) -> list[str]:
    """The likeliest candidate for each prompt by ``logps`` (N, C); of equals the first."""
    N, C = logps.shape
    own = _each(candidates, N)
    if len(own) != N or any(len(texts) != C for texts in own):
        raise ValueError(
            f"logps are {tuple(logps.shape)}: give {C} candidates for all {N} prompts, or for "
            "each of them."
        )
    return [texts[i] for texts, i in zip(own, logps.argmax(1).tolist())]


def calibrate(logps: Tensor, content_free: Tensor) -> Tensor:
    """Contextual calibration (Zhao et al., 2021, section 4): divide the bias out.

    Each candidate's probability, normalised over the candidates, is divided by the mean one that
    it has after content-free inputs: eq. 1 with W = diag(p_cf)⁻¹ and b = 0. The paper's softmax of
    the quotients is replaced by their normalisation, which ranks them alike.

    Args:
        logps: (N, C) log-probabilities of the candidates, summed or per token.
        content_free: (M, C), the same after M content-free inputs in the same template, with the
            same examples.

    Returns:
        (N, C) log-probabilities.

    Raises:
        ValueError: shapes that do not fit together.

    Example: .8 against .2 is little for a model that says .9 against .1 of nothing.
        >>> calibrate(torch.tensor([[.8, .2]]).log(), torch.tensor([[.9, .1]]).log()).exp()
        tensor([[0.3077, 0.6923]])
    """
    if logps.ndim != 2 or content_free.ndim != 2 or logps.shape[1] != content_free.shape[1]:
        raise ValueError(
            f"logps must be (N, C) and content_free (M, C), got {tuple(logps.shape)} and "
            f"{tuple(content_free.shape)}."
        )
    if 0 in content_free.shape:
        raise ValueError("content_free is empty: give at least one content-free input.")
    bias = content_free.log_softmax(1).exp().mean(0).log()  # (C,)
    return (logps.log_softmax(1) - bias).log_softmax(1)
