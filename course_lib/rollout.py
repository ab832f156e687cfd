"""From prompts to a batch of sampled responses: what every algorithm on samples reads.

The prompts are padded on the left and the responses on the right, so that each response begins in
the same column. Where a response ends is decided by its position: everything behind its first end
token is padding, whatever ids stand there, and an end token in a prompt ends nothing. So the token
of padding may be an end token, or one that the model writes.
Simplified away: several responses a prompt (repeat the prompt), log-probabilities of the sampler.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from course_lib.generation import EndTokens, end_ids, generate
from course_lib.ops import IGNORE_INDEX, long_ids, sequence_logprobs
from course_lib.rows import collate, pad_rows, positions_of
from course_lib.runtime import evaluation_mode, model_device


def pad_left(rows: Sequence[Sequence[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, (B, T), of rows of different lengths.

    Raises:
        ValueError: no rows.

    Example:
        >>> pad_left([[5, 6], [7]])
        (tensor([[5, 6],
                [0, 7]]), tensor([[1, 1],
                [0, 1]]))
    """
    return pad_rows(rows, pad, "left"), pad_rows([[1] * len(row) for row in rows], 0, "left")


def response_batch(
    ids: Tensor, prompt_mask: Tensor, eos_token_id: EndTokens = None
) -> dict[str, Tensor]:
    """The batch of prompts and responses that stand side by side.

    Args:
        ids: (B, P + R), what ``generate`` gives: prompts padded on the left, and their responses.
        prompt_mask: (B, P), 1 = a token of the prompt.
        eos_token_id: with which the responses were generated.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids`` and ``labels``, (B, P + R): the labels
        are the response up to its end token, which counts, and ``IGNORE_INDEX`` elsewhere.
        ``ended``, (B,): whether there is an end token; False where the response was cut off.

    Raises:
        ValueError: no column of responses, prompts that are padded on the right.

    Example: 2 ends and pads; the prompt 5 6 2 has one too. The second response is cut off.
        >>> batch = response_batch(torch.tensor([[5, 6, 2, 7, 2, 2], [2, 2, 8, 7, 9, 9]]),
        ...                        torch.tensor([[1, 1, 1], [0, 0, 1]]), eos_token_id=2)
        >>> batch["labels"]
        tensor([[-100, -100, -100,    7,    2, -100],
                [-100, -100, -100,    7,    9,    9]])
        >>> batch["attention_mask"]
        tensor([[1, 1, 1, 1, 1, 0],
                [0, 0, 1, 1, 1, 1]])
        >>> batch["position_ids"]
        tensor([[0, 1, 2, 3, 4, 4],
                [0, 0, 0, 1, 2, 3]])
        >>> batch["ended"]
        tensor([ True, False])
    """
    P, R = prompt_mask.shape[1], ids.shape[1] - prompt_mask.shape[1]
    if len(ids) != len(prompt_mask) or R < 1:
        raise ValueError(
            f"ids have shape {tuple(ids.shape)}, the prompts' mask {tuple(prompt_mask.shape)}: "
            "expected as many rows, and at least one column more, the responses'."
        )
    if not prompt_mask[:, -1].all():
        raise ValueError("The prompts must be padded on the left, so that each ends at column P.")
    ids = long_ids(ids, "ids")
    response = ids[:, P:]  # (B, R)
    is_end = torch.isin(response, response.new_tensor(end_ids(eos_token_id)))
    ended = is_end.any(1)  # (B,)
    length = torch.where(ended, is_end.int().argmax(1) + 1, R)  # (B,): up to the first end token
    keep = torch.arange(R, device=ids.device) < length[:, None]  # (B, R)
    mask = torch.cat([prompt_mask.long(), keep.long()], dim=1)  # (B, P + R)
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, P:] = response.masked_fill(~keep, IGNORE_INDEX)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask),
            "labels": labels, "ended": ended}  # fmt: skip


def rollout(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_token_id: EndTokens = None,
    pad_token_id: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generator | None = None,
) -> dict[str, Tensor]:
    """Sample a response to each prompt, the model in evaluation mode and without gradients.

    Args:
        prompts: rows of token ids.
        pad_token_id: fills the rows; the first of ``eos_token_id`` when None, or 0 without one.
        max_new_tokens, eos_token_id, temperature, top_k, top_p, generator: see ``generate``.

    Returns:
        What ``response_batch`` gives, on the model's device. A loss calls the model with all but
        ``labels`` and ``ended``.

    Raises:
        ValueError: no prompts, and see ``generate``.
        FloatingPointError: logits that are not finite.
    """
    ends = end_ids(eos_token_id)
    pad = (*end_ids(pad_token_id), *ends, 0)[0]
    ids, mask = (part.to(model_device(model)) for part in pad_left(prompts, pad))
    out = generate(
        model, ids, mask, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
        top_p=top_p, eos_token_id=ends, pad_token_id=pad, generator=generator,
    )  # fmt: skip
    return response_batch(out, mask, ends)


def responses(batch: dict[str, Tensor]) -> list[list[int]]:
    """The token ids of each response, its end token included.

    Args:
        batch: of ``response_batch``.
    """
    labels = batch["labels"].tolist()
    return [[token for token in row if token != IGNORE_INDEX] for row in labels]


@torch.no_grad()
def response_logps(
    model: nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Tensor:
    """log p(answer | prompt), summed over the answer's tokens, the model in evaluation mode.

    Args:
        prompts, answers: rows of token ids, as many of each; nothing is put between them.

    Returns:
        (B,), on the CPU.

    Raises:
        ValueError: no rows, not one answer a prompt, an empty prompt or answer.
    """
    if len(prompts) != len(answers) or not all(prompts) or not all(answers):
        raise ValueError(
            f"{len(prompts)} prompts and {len(answers)} answers: expected one answer a prompt, and "
            "at least one token in each."
        )
    rows = [{"input_ids": [*p, *a], "labels": [IGNORE_INDEX] * len(p) + list(a)}
            for p, a in zip(prompts, answers)]  # fmt: skip
    batch = {k: v.to(model_device(model)) for k, v in collate(rows, 0, side="left").items()}
    labels = batch.pop("labels")
    keep = 1 + max(map(len, answers))  # one more: a first token is predicted before it
    with evaluation_mode(model):
        logits = model(**batch, logits_to_keep=keep).logits  # (B, keep, V)
    return sequence_logprobs(logits, labels[:, -keep:]).cpu()
