"""The one training loop: a stream of batches and a loss function.

It clips gradients, schedules the learning rate, logs to a CSV, and writes checkpoints from which a
killed run goes on bit for bit. It runs on ``accelerate``: under ``accelerate launch`` each process
takes its share of every batch, and loss and gradient are those of a single process.
Simplified away: sharded models and optimizers, fp16 loss scaling.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.checkpoints import (
    MetricsFile,
    check_readable,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from course_lib.processes import Batch, Workers

SCHEDULES = ("constant", "linear", "cosine", "trapezoid")


def lr_factor(
    step: int, max_steps: int, warmup_steps: int = 0,
    schedule: str | Callable[[int], float] = "linear", decay_fraction: float = 0.4,
) -> float:  # fmt: skip
    """What the base learning rate is multiplied with at ``step`` (counted from 0).

    ``constant``: 1. ``linear``: falls from 1 to 0. ``cosine``: half a cosine from 1 to 0.
    ``trapezoid``: 1, then linearly to 0 over the last ``decay_fraction`` of the run (Hu et al.,
    2024, "MiniCPM"). Or any function of the step. Each is held below 1 and below the warm-up line
    (step + 1) / warmup_steps.
    """
    left = max_steps - step
    factor = schedule(step) if callable(schedule) else {
        "constant": 1.0,
        "linear": left / max_steps,
        "cosine": 0.5 * (1 + math.cos(math.pi * step / max_steps)),
        "trapezoid": left / (max_steps * decay_fraction),
    }[schedule]  # fmt: skip
    warmup = (step + 1) / warmup_steps if warmup_steps else 1.0
    return float(min(1.0, warmup, factor))


def counted(total: Tensor, count: Tensor | float) -> Tensor:
    """The mean total / count, as a loss that tells ``train`` what it counts.

    A step may consist of several batches, on several processes. Its loss is Σ total / Σ count over
    all of them, as if they were one (transformers' ``num_items_in_batch``), and not the mean of
    their means.

    Args:
        total: a scalar, e.g. the sum over all response tokens.
        count: of what was summed: tokens, sequences, or the sum of their weights.

    Returns:
        A scalar, 0 where the count is 0. The count is its attribute ``count``; arithmetic loses
        it, so do that before.

    Example: 12 tokens of 1 nat in one batch, a token of 14 in the other: 26 / 13 = 2, where the
    mean of the means would be (1 + 14) / 2 = 7.5.
        >>> loss = counted(torch.tensor(12.0), 12)
        >>> loss, loss.count
        (tensor(1.), tensor(12))
    """
    count = torch.as_tensor(count, device=total.device).detach()
    loss = total / count.masked_fill(count == 0, 1)
    loss.count = count
    return loss


# --- the loop -----------------------------------------------------------------------------------


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: Callable[[nn.Module, Batch], Tensor | tuple[Tensor, dict]],
    *,
    max_steps: int,
    optimizer=None,
    lr: float = 1e-3,
    warmup_steps: int = 0,
    schedule: str | Callable[[int], float] = "linear",
    decay_fraction: float = 0.4,
    max_grad_norm: float = 1.0,
    gradient_accumulation: int = 1,
    mixed_precision: str = "no",
    metrics_path: str | Path | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int | None = None,
    evaluate: Callable[[nn.Module, int], dict] | None = None,
    evaluate_every: int | None = None,
    progress: bool | None = None,
) -> list[dict]:
    """Train ``model`` in place.

    Args:
        model: any module; it is trained on the device it is on.
        batches: dicts of tensors whose first dimension is the batch; processes share its rows. A
            stream with ``state_dict`` and ``load_state_dict`` is resumed by them; any other is read
            again up to where it was. A stream whose attribute ``live`` is true, as one that rolls
            out the model in training, is never read again: with checkpoints it needs both methods.
            Its batches are each process's own and are not shared.
        loss_fn: (model, batch) -> loss, or (loss, {name: number}) to log more. A loss of
            ``counted`` is averaged over all it counts in the step, any other over its rows; the
            numbers are averaged with the same weights.
        max_steps: optimizer steps; fewer, with a warning, when the batches run out.
        optimizer: has ``step``, ``zero_grad``, ``param_groups`` and a state; AdamW when None.
        lr: of that AdamW. A resumed run takes the learning rates of this call, as it does with the
            schedule; what else the optimizer is set to comes from the checkpoint.
        warmup_steps, schedule, decay_fraction: see ``lr_factor``.
        max_grad_norm: gradients are scaled down to this norm.
        gradient_accumulation: batches a step, as if they were one.
        mixed_precision: ``"no"`` (the same course on every machine), ``"bf16"``, or ``"auto"`` for
            ``runtime.precision_for`` the device. Batches are drawn in it too: ``runtime.autocast``.
        metrics_path: a CSV with one row a step: step, loss, lr, grad_norm, seconds, and the rest.
        checkpoint_dir: where checkpoints go; training resumes from the newest one there.
        checkpoint_every: steps between checkpoints; only the last step is saved when None.
        evaluate: (model, step) -> {name: number}, called every ``evaluate_every`` steps and at
            ``max_steps``; its numbers go into that step's row.
        progress: show a progress bar; on a terminal only when None.

    Returns:
        One dict a step, those before a resume included.

    Raises:
        ValueError: settings that make no sense, no batch at all, unreadable checkpoints, a stream
            that is not the checkpoint's or has no state that a checkpoint can hold.
        FloatingPointError: the loss or its gradient is not finite; the weights are those of the
            step before and the last checkpoint stays.
    """
    if not callable(schedule) and schedule not in SCHEDULES:
        raise ValueError(
            f"schedule must be one of {SCHEDULES} or a function of the step, got {schedule!r}."
        )
    if max_steps < 1 or gradient_accumulation < 1:
        raise ValueError(
            f"max_steps and gradient_accumulation must be at least 1, got {max_steps} and "
            f"{gradient_accumulation}."
        )
    if not 0 < decay_fraction <= 1:
        raise ValueError(f"decay_fraction must lie in (0, 1], got {decay_fraction}.")
    folder = Path(checkpoint_dir) if checkpoint_dir is not None else None
    if folder is not None:
        _check_stream(batches)
    device = next(model.parameters()).device
    workers = Workers(device, mixed_precision, getattr(batches, "live", False))
    optimizer = optimizer or torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr, (0.9, 0.95), weight_decay=0.0
    )
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    optimizer.zero_grad()  # what an earlier run left behind when it stopped
    state = load_checkpoint(folder) if folder is not None else None
    if state is None:
        history, step, consumed, stream = [], 0, 0, iter(batches)
    else:
        history, step, consumed = state["history"], state["step"], state["consumed"]
        stream = _restore(state, model, optimizer, batches, workers, finished=step >= max_steps)
    main = workers.accelerator.is_main_process
    metrics = MetricsFile(Path(metrics_path) if metrics_path and main else None, history)
    wrapped = workers.accelerator.prepare(model)
    wrapped.train()
    spent = history[-1]["seconds"] if history else 0.0
    started = time.perf_counter() - spent

    def save() -> None:
        if folder is None:
            return
        rngs, streams = workers.gather(rng_state()), None
        if hasattr(batches, "state_dict"):
            streams = batches.state_dict()
            streams = workers.gather(streams) if workers.live else streams
        if main:
            save_checkpoint(folder, {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                "consumed": consumed, "history": history, "batches": streams, "rng": rngs,
            })  # fmt: skip

    hidden = None if progress is None else not progress  # None: hidden where there is no terminal
    bar = tqdm(total=max_steps, initial=step, desc="training", disable=hidden if main else True)
    try:
        while step < max_steps:
            factor = lr_factor(step, max_steps, warmup_steps, schedule, decay_fraction)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            micro_batches = workers.draw(stream, gradient_accumulation)
            if not micro_batches:
                _ran_out(step, max_steps)
                break
            wrapped.train()  # a live stream may have sampled in evaluation mode
            consumed += len(micro_batches)
            row = _step(workers, wrapped, micro_batches, loss_fn, optimizer, max_grad_norm, step)
            step += 1
            row = {"step": step, **row, "lr": optimizer.param_groups[0]["lr"]}
            if evaluate and (step == max_steps or (evaluate_every and step % evaluate_every == 0)):
                figures = evaluate(model, step) or {}
                row |= {name: float(value) for name, value in figures.items()}
            metrics.append(row | {"seconds": round(time.perf_counter() - started, 3)})
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
            if checkpoint_every and step % checkpoint_every == 0 and step < max_steps:
                save()
        if not state or step > state["step"]:
            save()
        workers.accelerator.wait_for_everyone()  # or another might look for it too early
    finally:
        bar.close()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        _release(model)
    return history


def _ran_out(step: int, max_steps: int) -> None:
    if step == 0:
        raise ValueError(
            "There is no batch, so not a single step can be made: either there are fewer rows than "
            "a batch takes, or the batches are an iterator that was used up before."
        )
    warnings.warn(f"The batches ran out after step {step} of {max_steps}.", stacklevel=3)


def _release(model: nn.Module) -> None:
    """Take off what accelerate hangs on a model, a forward in bf16 and a mark; evaluation mode."""
    model.eval()
    model.__dict__.pop("_is_accelerate_prepared", None)
    if (original := model.__dict__.pop("_original_forward", None)) is not None:
        del model.forward
        if original != model.forward:  # somebody had given this object a forward of its own
            model.forward = original


def _step(workers, model, micro_batches, loss_fn, optimizer, max_grad_norm, step) -> dict:
    """One optimizer step; returns its loss, gradient norm and logged numbers.

    Gradients are those of Σ count · loss over batches and processes, and are divided by Σ count at
    the end, for only then is it known. A batch alone has its gradient as it is.
    """
    alone = len(micro_batches) == workers.world == 1
    sums: dict[str, list[float]] = {}  # name -> Σ count · number, Σ count
    for batch in micro_batches:
        share, rows = workers.share(batch)
        with workers.autocast():
            result = loss_fn(model, share)
        loss, numbers = result if isinstance(result, tuple) else (result, {})
        count = float(getattr(loss, "count", rows)) if rows else 0.0
        (loss if alone else loss * count).backward()
        for name, value in {**numbers, "loss": loss}.items():
            total = sums.setdefault(name, [0.0, 0.0])
            if count:
                total[0] += count * float(torch.as_tensor(value).detach())
                total[1] += count
    counts: dict[str, list[float]] = {}
    for one in workers.gather(sums):
        for name, (total, count) in one.items():
            so_far = counts.setdefault(name, [0.0, 0.0])
            so_far[0] += total
            so_far[1] += count
    means = {name: total / count if count else math.nan for name, (total, count) in counts.items()}
    counted_in_all = counts["loss"][1]
    if not counted_in_all:
        means["loss"] = 0.0
        warnings.warn("A step counted nothing: every label is ignored.", stacklevel=3)
    elif not alone:
        # Over several processes .grad is already their mean.
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        torch._foreach_mul_(grads, workers.world / counted_in_all)
    norm = float(workers.accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
    for name, value in (("loss", means["loss"]), ("norm of the gradient", norm)):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The {name} of step {step + 1} is {value}. Lower the learning rate or look at the "
                "batch; the last checkpoint is untouched."
            )
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": means.pop("loss"), "grad_norm": norm, **means}


# --- going on -----------------------------------------------------------------------------------


def _check_stream(batches: Iterable[Batch]) -> None:
    """Before a run whose checkpoints would be of no use."""
    resumable = hasattr(batches, "state_dict") and hasattr(batches, "load_state_dict")
    if getattr(batches, "live", False) and not resumable:
        raise ValueError(
            "A live stream cannot be read again to where a checkpoint left it: give it state_dict "
            "and load_state_dict, or train without checkpoint_dir."
        )
    if resumable:
        check_readable(batches.state_dict())


def _restore(
    state: dict, model: nn.Module, optimizer, batches: Iterable[Batch], workers: Workers,
    finished: bool,
) -> Iterator[Batch]:  # fmt: skip
    """Put everything back and return the stream at the batch where it stood."""
    model.load_state_dict(state["model"])
    _restore_optimizer(optimizer, state["optimizer"])
    if hasattr(batches, "load_state_dict"):
        saved = state["batches"]
        if workers.live:
            if len(saved) != workers.world:
                raise ValueError(
                    f"The checkpoint holds the live streams of {len(saved)} processes, and "
                    f"{workers.world} are running: start as many."
                )
            saved = saved[workers.rank]
        batches.load_state_dict(saved)
        stream = iter(batches)
    else:
        stream, consumed = iter(batches), state["consumed"]
        there = sum(1 for _ in islice(stream, consumed))
        if there < consumed and not finished:
            raise ValueError(
                f"The run of the checkpoint had read {consumed} batches, and here are only {there}:"
                " these are other batches, or an iterator that was used up before."
            )
    set_rng_state(state["rng"], workers.rank)
    return stream


def _restore_optimizer(optimizer, state: dict) -> None:
    """Its state and settings but the learning rates; says which settings are not used."""
    given = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for settings, group in zip(given, optimizer.param_groups, strict=True):
        group["lr"] = settings["lr"]
    own = {"params", "lr", "initial_lr"}
    changed = {
        name: (group[name], settings[name])
        for settings, group in zip(given, optimizer.param_groups, strict=True)
        for name in settings.keys() & group.keys() - own
        if settings[name] != group[name]
    }
    for name, (kept, ignored) in sorted(changed.items()):
        warnings.warn(
            f"The optimizer's {name} stays {kept}, as in the checkpoint; {ignored} is ignored.",
            stacklevel=4,
        )
