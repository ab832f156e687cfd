"""Corruptions for encoder-decoders: T5 (Raffel et al., 2020) and BART (Lewis et al., 2020).

Each takes the ids of one sequence, without padding, and gives lists; a ``torch.Generator`` is the
only source of chance. ``special_ids`` are never removed, moved or replaced: a span that meets one
goes on behind it as another span.
Simplified away: BART's token deletion and document rotation, which its final models do without
(its section 2.2 and table 1), and fairseq's rare random words in place of a mask.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Generator, Tensor


def _as_list(input_ids: Sequence[int] | Tensor) -> list[int]:
    ids = torch.as_tensor(input_ids)
    if ids.ndim != 1 or (len(ids) and ids.is_floating_point()):
        raise ValueError(
            f"input_ids must be the integer ids of one sequence, shape (T,), got shape "
            f"{tuple(ids.shape)} of {ids.dtype}: call this once for each row."
        )
    return [int(i) for i in ids]


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, both excluded, got {value}.")


def random_span_mask(
    length: int, *, noise_density: float = 0.15, mean_span_length: float = 3.0, generator: Generator
) -> Tensor:
    """Which tokens to drop: T5's ``random_spans_noise_mask``, derived from its three rules.

    1. Of T tokens, N = round(T * noise_density) are noise, at least 1 and at most T - 1.
    2. They form S = round(N / mean_span_length) spans, at least 1, at most min(N, T - N).
    3. Kept and dropped spans alternate, a kept one first, so there are S of each. N is cut into S
       positive parts at S - 1 of its N - 1 gaps, T - N likewise, every choice of gaps equally
       likely: C(N-1, S-1) * C(T-N-1, S-1) masks in all.

    So the first token is always kept and the last always dropped, and where there is one span (with
    the defaults, up to 30 tokens) it is always the end of the sequence: corrupt longer ones.
    The paper's code differs in two corners: it has no bound T - N in rule 2, and works in single
    precision, where a few halves round up (28.5 of 190 tokens to 29, here to 28).

    Returns:
        (T,) bool, True = noise.

    Raises:
        ValueError: T < 2, a density outside (0, 1), a mean length below 1.
    """
    _check_fraction("noise_density", noise_density)
    if mean_span_length < 1:
        raise ValueError(f"mean_span_length must be at least 1 token, got {mean_span_length}.")
    if length < 2:
        raise ValueError(f"Only {length} tokens to corrupt: one is kept, one dropped, so give 2.")
    noise = min(max(round(length * noise_density), 1), length - 1)
    spans = min(max(round(noise / mean_span_length), 1), noise, length - noise)

    def parts(total: int) -> Tensor:
        gaps = torch.randperm(total - 1, generator=generator, device=generator.device)
        cuts = (gaps[: spans - 1].sort().values + 1).tolist()
        return torch.tensor([0, *cuts, total]).diff()  # (S,)

    dropped, kept = parts(noise), parts(length - noise)
    lengths = torch.stack([kept, dropped], dim=1).flatten()  # (2S,)
    return (torch.arange(2 * spans) % 2 == 1).repeat_interleave(lengths)


def corrupt_spans(
    input_ids: Sequence[int] | Tensor,
    *,
    sentinel_ids: Sequence[int],
    special_ids: Collection[int] = (),
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
    generator: Generator,
) -> tuple[list[int], list[int]]:
    """T5's objective: spans replaced by sentinels, and the spans as target (section 3.1.4, fig. 2).

    Args:
        input_ids: (T,), at least two of them not special.
        sentinel_ids: in the order of their use. T5's fall: ``range(32099, 31999, -1)``.
        special_ids: never dropped. N and S of ``random_span_mask`` count the other tokens.

    Returns:
        source and target. The target ends with one sentinel more than the source holds, as in the
        paper; its code leaves that one out, because a dropped span always ends the sequence there.

    Raises:
        ValueError: see ``random_span_mask``; too few sentinels, repeated ones, or ones that are
            among the inputs.

    Example: the sentence of figure 2, "Thank you for inviting me to your party last week", is 0 to
    9. "Thank you <X> me to your party last <Y>" has the target "<X> for inviting <Y> week <Z>".
        >>> corrupt_spans(range(10), sentinel_ids=[99, 98, 97], noise_density=0.3,
        ...               mean_span_length=1.5, generator=torch.Generator().manual_seed(12))
        ([0, 1, 99, 4, 5, 6, 7, 8, 98], [99, 2, 3, 98, 9, 97])
    """
    ids = _as_list(input_ids)
    if len(set(sentinel_ids)) < len(sentinel_ids) or set(sentinel_ids) & set(ids):
        raise ValueError(
            "sentinel_ids must be distinct and absent from input_ids, or the target cannot be put "
            "back into the source: give ids of their own to the sentinels."
        )
    body = [t for t, token in enumerate(ids) if token not in special_ids]
    mask = random_span_mask(
        len(body),
        noise_density=noise_density, mean_span_length=mean_span_length, generator=generator,
    )  # fmt: skip
    noise = {t for t, dropped in zip(body, mask.tolist()) if dropped}
    needed = sum(t - 1 not in noise for t in noise) + 1
    if needed > len(sentinel_ids):
        raise ValueError(
            f"{needed - 1} spans need {needed} sentinels, one of them to end the target, got "
            f"{len(sentinel_ids)}: give more, or corrupt shorter sequences."
        )
    source, target, sentinels = [], [], iter(sentinel_ids)
    for t, token in enumerate(ids):
        if t not in noise:
            source.append(token)
            continue
        if t - 1 not in noise:
            source.append(next(sentinels))
            target.append(source[-1])
        target.append(token)
    return source, [*target, next(sentinels)]


def poisson_span_lengths(total: int, poisson_lambda: float, generator: Generator) -> list[int]:
    """Lengths drawn from Poisson(``poisson_lambda``) until they reach ``total``; the last is cut.

    Zeros are among them: a share of exp(-lambda), 5 % at BART's 3.

    Raises:
        ValueError: ``poisson_lambda`` is not positive.
    """
    if poisson_lambda <= 0:
        raise ValueError(f"poisson_lambda, a mean length, must be positive, got {poisson_lambda}.")
    rate = torch.tensor(float(poisson_lambda), device=generator.device)
    lengths, left = [], total
    while left > 0:
        lengths.append(min(int(torch.poisson(rate, generator=generator)), left))
        left -= lengths[-1]
    return lengths


def infill_text(
    input_ids: Sequence[int] | Tensor,
    *,
    mask_id: int,
    special_ids: Collection[int] = (),
    mask_ratio: float = 0.3,
    poisson_lambda: float = 3.0,
    generator: Generator,
) -> list[int]:
    """BART's text infilling: each span becomes one mask, however long it was (section 2.2).

    round(n * ``mask_ratio``) of the n tokens that are not special, at least one, are dropped in
    ``poisson_span_lengths``. Spans and kept tokens come in any order with equal chance; a span of
    no tokens is a mask put between two of them. Unlike fairseq's, spans never overlap, so that the
    number of dropped tokens is exact.

    Args:
        input_ids: (T,).
        mask_id: stands for a span.
        special_ids: never dropped.

    Returns:
        The corrupted sequence; the model has to tell how many tokens each mask hides.

    Raises:
        ValueError: a ratio outside (0, 1), no token to mask, ``poisson_lambda`` not positive.

    Example: the first mask stands for 4, 5 and 6, the second for nothing.
        >>> infill_text([0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1], mask_id=99, special_ids={0, 1},
        ...             generator=torch.Generator().manual_seed(28))
        [0, 3, 99, 7, 8, 99, 9, 10, 11, 1]
    """
    _check_fraction("mask_ratio", mask_ratio)
    tokens, specials = [], [[]]  # specials[i]: those right before tokens[i], or at the end
    for token in _as_list(input_ids):
        if token in special_ids:
            specials[-1].append(token)
        else:
            tokens.append(token)
            specials.append([])
    if not tokens:
        raise ValueError("Nothing can be masked: input_ids hold special tokens only, or nothing.")
    dropped = max(1, round(len(tokens) * mask_ratio))
    lengths = poisson_span_lengths(dropped, poisson_lambda, generator)
    slots = len(tokens) - dropped + len(lengths)  # kept tokens and spans, side by side
    order = torch.randperm(slots, generator=generator, device=generator.device).tolist()
    source, specials[0], i = specials[0], [], 0
    for slot in order:
        is_span = slot < len(lengths)
        length = lengths[slot] if is_span else 1
        source += [mask_id] if length == 0 else []
        for k in range(length):
            source += specials[i]
            if not is_span:
                source.append(tokens[i])
            elif k == 0 or specials[i]:
                source.append(mask_id)
            i += 1
    return source + specials[-1]


def permute_sentences(
    input_ids: Sequence[int] | Tensor,
    *,
    sentence_end_ids: Collection[int],
    special_ids: Collection[int] = (),
    generator: Generator,
) -> list[int]:
    """BART's sentence permutation: the sentences of a document in random order (section 2.2).

    A sentence ends behind the last of a run of ``sentence_end_ids``, or where the document does.
    Special tokens stay where they are; sentences change places only between two of them.

    Example: 9 is the full stop.
        >>> permute_sentences([0, 3, 4, 9, 5, 9, 6, 7, 9, 1], sentence_end_ids={9},
        ...                   special_ids={0, 1}, generator=torch.Generator().manual_seed(0))
        [0, 6, 7, 9, 3, 4, 9, 5, 9, 1]
    """
    result, sentences = [], []

    def shuffle() -> None:
        order = torch.randperm(len(sentences), generator=generator, device=generator.device)
        for k in order.tolist():
            result.extend(sentences[k])
        sentences.clear()

    for token in _as_list(input_ids):
        if token in special_ids:
            shuffle()
            result.append(token)
            continue
        ended = sentences and sentences[-1][-1] in sentence_end_ids
        if not sentences or (ended and token not in sentence_end_ids):
            sentences.append([])
        sentences[-1].append(token)
    shuffle()
    return result


def denoise(
    input_ids: Sequence[int] | Tensor,
    *,
    mask_id: int,
    sentence_end_ids: Collection[int],
    special_ids: Collection[int] = (),
    mask_ratio: float = 0.3,
    poisson_lambda: float = 3.0,
    generator: Generator,
) -> tuple[list[int], list[int]]:
    """BART's objective (its section 2.2): sentences permuted, then text infilled.

    Returns:
        source and target; the target is the whole original sequence.
    """
    permuted = permute_sentences(
        input_ids,
        sentence_end_ids=sentence_end_ids, special_ids=special_ids, generator=generator,
    )  # fmt: skip
    source = infill_text(
        permuted, mask_id=mask_id, special_ids=special_ids, mask_ratio=mask_ratio,
        poisson_lambda=poisson_lambda, generator=generator,
    )  # fmt: skip
    return source, _as_list(input_ids)
