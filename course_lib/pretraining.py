"""Pretraining objectives: causal, masked, and those of encoder-decoders with their batches.

The corruptions of ``course_lib.denoising`` can be had from here too.
Simplified away: BERT's next-sentence prediction, which RoBERTa drops (Liu et al., 2019, section
4.2), and its fixed number of masks a sequence (each token draws for itself, as in transformers);
the causal loss of packed rows runs over document borders too (the model sees the ``<|end|>``
between them).
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from course_lib.denoising import corrupt_spans, denoise, infill_text, permute_sentences
from course_lib.models import mask_inputs
from course_lib.ops import IGNORE_INDEX, long_ids, shift_labels
from course_lib.rows import pad_rows
from course_lib.training import counted

__all__ = [
    "causal_labels", "causal_lm_loss", "collate_pairs", "corrupt_spans", "denoise", "infill_text",
    "mask_tokens", "masked_batches", "masked_lm_loss", "permute_sentences", "seq2seq_loss",
    "shift_right",
]  # fmt: skip

# --- causal: decoders ---------------------------------------------------------------------------


def causal_labels(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Labels of next-token prediction: the inputs themselves, unshifted, padding ignored.

    Args:
        input_ids: (B, T).
        attention_mask: (B, T), 1 = keep; positions with 0 become ``IGNORE_INDEX``.

    Returns:
        (B, T). ``ops.shift_labels`` does the shift, in ``causal_lm_loss``.

    Raises:
        ValueError: the mask has another shape.

    Example:
        >>> causal_labels(torch.tensor([[7, 8, 1]]), torch.tensor([[1, 1, 0]])).tolist()
        [[7, 8, -100]]
    """
    labels = long_ids(input_ids, "input_ids").clone()
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids "
                f"{tuple(input_ids.shape)}: give one mask entry for each token."
            )
        labels[~attention_mask.bool()] = IGNORE_INDEX
    return labels


def causal_lm_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the next token, in nats (Radford et al., 2018, eq. 1).

    Args:
        batch: ``input_ids`` (B, T); optionally ``attention_mask`` and ``labels``, both (B, T).

    Returns:
        A scalar, the mean over every kept position whose next token is not ignored; 0 when there
        is none. Padding on the left predicts nothing, so both sides of padding give one loss.
    """
    input_ids, mask = batch["input_ids"], batch.get("attention_mask")
    labels = batch["labels"] if "labels" in batch else causal_labels(input_ids, mask)
    logits = model(input_ids, **mask_inputs(model, mask)).logits  # (B, T, V)
    targets = shift_labels(labels)  # (B, T)
    if mask is not None:
        targets = targets.masked_fill(~mask.bool(), IGNORE_INDEX)
    return _mean_nll(logits, targets)


# --- masked: encoders ---------------------------------------------------------------------------


def mask_tokens(
    input_ids: Tensor,
    *,
    mask_id: int,
    vocab_size: int,
    special_ids: Collection[int] = (),
    mask_prob: float = 0.15,
    replace_prob: float = 0.8,
    random_prob: float = 0.1,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Inputs and labels of masked language modelling (Devlin et al., 2019, section 3.1).

    Each token is chosen with ``mask_prob``. Of the chosen, 80 % become ``mask_id``, 10 % a random
    word, 10 % stay. Called anew for every batch this is RoBERTa's dynamic masking; for the static
    one see ``masked_batches``.

    Args:
        input_ids: (B, T); not changed.
        mask_id: may be ``vocab_size`` or above, where it is not among the random words.
        vocab_size: random words are drawn from 0 to ``vocab_size`` - 1, special ones included.
        special_ids: never chosen, like ``mask_id``; padding belongs here.
        replace_prob, random_prob: shares of the chosen tokens; the rest stays.

    Returns:
        The corrupted inputs (B, T), and the labels (B, T): the original token where one was chosen,
        the one that stays included, and ``IGNORE_INDEX`` elsewhere. Nothing is shifted.

    Raises:
        ValueError: ids that are not (B, T), probabilities out of range.

    Example: 4 becomes a random 7, 5 and 7 are masked, 6 stays and carries a loss nevertheless.
        >>> masked, labels = mask_tokens(
        ...     torch.tensor([[0, 3, 4, 5, 6, 7, 1]]), mask_id=10, vocab_size=10,
        ...     special_ids={0, 1}, mask_prob=0.5, generator=torch.Generator().manual_seed(170))
        >>> masked.tolist(), labels.tolist()
        ([[0, 3, 7, 10, 6, 10, 1]], [[-100, -100, 4, 5, 6, 7, -100]])
    """
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids must be (B, T), got shape {tuple(input_ids.shape)}.")
    if not 0 < mask_prob < 1:
        raise ValueError(f"mask_prob must lie between 0 and 1, both excluded, got {mask_prob}.")
    if min(replace_prob, random_prob) < 0 or replace_prob + random_prob > 1:
        raise ValueError(
            f"replace_prob={replace_prob} and random_prob={random_prob} are shares of the chosen "
            "tokens: neither may be negative, and together they are at most 1."
        )
    input_ids = long_ids(input_ids, "input_ids")
    home, device = generator.device, input_ids.device
    chance = torch.rand(2, *input_ids.shape, generator=generator, device=home).to(device)
    words = torch.randint(vocab_size, input_ids.shape, generator=generator, device=home).to(device)
    never = torch.tensor([*special_ids, mask_id], device=device)
    chosen = (chance[0] < mask_prob) & ~torch.isin(input_ids, never)  # (B, T)
    masked = chosen & (chance[1] < replace_prob)
    random = chosen & ~masked & (chance[1] < replace_prob + random_prob)
    labels = input_ids.masked_fill(~chosen, IGNORE_INDEX)
    return torch.where(random, words, input_ids).masked_fill(masked, mask_id), labels


def masked_batches(
    rows: Tensor,
    mask: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    batch_size: int,
    epochs: int,
    pad_id: int,
    static_masks: int | None = None,
    generator: Generator,
) -> Iterator[dict[str, Tensor]]:
    """Batches for ``masked_lm_loss``, with dynamic or static masks (Liu et al., 2019, section 4.1).

    Args:
        rows: (N, T), read in a new order every epoch.
        mask: ``mask_tokens`` with all but its first argument bound. If its generator is not the one
            below, the order of the rows is the same with dynamic and with static masks.
        static_masks: None masks every batch anew. A number masks the rows so many times before the
            start, and epochs take turns with these copies: 1 is the plainest static masking, BERT
            had 10 for 40 epochs.
        generator: shuffles the rows.

    Returns:
        An iterator of ``input_ids``, ``attention_mask`` and ``labels``, each (B, T).

    Raises:
        ValueError: ``static_masks`` below 1.
    """
    if static_masks is not None and static_masks < 1:
        raise ValueError(f"static_masks must be at least 1, or None (dynamic), got {static_masks}.")
    copies = [mask(rows) for _ in range(static_masks or 0)]

    def stream() -> Iterator[dict[str, Tensor]]:
        for epoch in range(epochs):
            order = torch.randperm(len(rows), generator=generator, device=generator.device)
            for chosen in order.to(rows.device).split(batch_size):
                if copies:
                    input_ids, labels = (part[chosen] for part in copies[epoch % len(copies)])
                else:
                    input_ids, labels = mask(rows[chosen])
                keep = (rows[chosen] != pad_id).long()
                yield {"input_ids": input_ids, "attention_mask": keep, "labels": labels}

    return stream()


def _mean_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log p(labels[t]) under logits[t], (B, T, V) and (B, T); 0 if all are ignored."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must agree in (B, T)."
        )
    labels = long_ids(labels, "labels")
    total = F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return counted(total, (labels != IGNORE_INDEX).sum())


def masked_lm_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the chosen tokens, in nats (Devlin et al., 2019, sec. 3.1).

    Args:
        batch: ``input_ids`` and ``labels`` of ``mask_tokens``; optionally ``attention_mask``; all
            (B, T). Position t of the logits predicts label t: an encoder sees both sides.

    Returns:
        A scalar; 0 if no token was chosen.
    """
    logits = model(batch["input_ids"], attention_mask=batch.get("attention_mask")).logits
    return _mean_nll(logits, batch["labels"])


# --- source to target: encoder-decoders ---------------------------------------------------------


def shift_right(labels: Tensor, decoder_start_token_id: int, pad_id: int) -> Tensor:
    """What the decoder reads while it predicts ``labels``: (B, T), one place to the right.

    Example:
        >>> shift_right(torch.tensor([[7, 8, 1, -100]]), decoder_start_token_id=2, pad_id=0)
        tensor([[2, 7, 8, 1]])
    """
    if labels.ndim != 2:
        raise ValueError(f"labels must be (B, T), got shape {tuple(labels.shape)}.")
    shifted = F.pad(labels[:, :-1], (1, 0), value=decoder_start_token_id)
    return shifted.masked_fill(shifted == IGNORE_INDEX, pad_id)


def collate_pairs(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_id: int,
    decoder_start_token_id: int,
    eos_id: int | None = None,
) -> dict[str, Tensor]:
    """A batch for ``seq2seq_loss`` from pairs of source and target, padded on the right.

    Args:
        pairs: as ``corrupt_spans`` and ``denoise`` give them.
        eos_id: put behind every source and target; nothing is when None.

    Returns:
        ``input_ids`` and ``attention_mask`` (B, T_source); ``labels``, ``decoder_input_ids`` and
        ``decoder_attention_mask`` (B, T_target).

    Raises:
        ValueError: no pairs, or an empty source or target.

    Example:
        >>> batch = collate_pairs([([5, 99], [99, 6, 98]), ([7], [8])], pad_id=0,
        ...                       decoder_start_token_id=2, eos_id=1)
        >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
        ([[5, 99, 1], [7, 1, 0]], [[1, 1, 1], [1, 1, 0]])
        >>> batch["labels"].tolist(), batch["decoder_input_ids"].tolist()
        ([[99, 6, 98, 1], [8, 1, -100, -100]], [[2, 99, 6, 98], [2, 8, 1, 0]])
        >>> batch["decoder_attention_mask"].tolist()
        [[1, 1, 1, 1], [1, 1, 0, 0]]
    """
    end = [] if eos_id is None else [eos_id]
    sources, targets = ([[*pair[side], *end] for pair in pairs] for side in (0, 1))
    if not pairs or not all(sources) or not all(targets):
        raise ValueError("There must be pairs, and no source and no target may be empty.")
    labels = pad_rows(targets, IGNORE_INDEX)
    return {
        "input_ids": pad_rows(sources, pad_id),
        "attention_mask": pad_rows([[1] * len(row) for row in sources], 0),
        "labels": labels,
        "decoder_input_ids": shift_right(labels, decoder_start_token_id, pad_id),
        # decoder_input_ids[t] is read to predict labels[t], so both have the same padding.
        "decoder_attention_mask": (labels != IGNORE_INDEX).long(),
    }


def seq2seq_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the target given the source, in nats.

    The loss of T5 (Raffel et al., 2020, section 3.1.4) and BART (Lewis et al., 2020, section 2).

    Args:
        batch: what ``collate_pairs`` gives. Labels are the target itself: the shift sits in
            ``decoder_input_ids``, so position t of the logits predicts label t.

    Returns:
        A scalar; 0 if every label is ignored.
    """
    logits = model(
        batch["input_ids"],
        attention_mask=batch.get("attention_mask"),
        decoder_input_ids=batch["decoder_input_ids"],
        decoder_attention_mask=batch.get("decoder_attention_mask"),
    ).logits  # (B, T_target, V)
    return _mean_nll(logits, batch["labels"])
