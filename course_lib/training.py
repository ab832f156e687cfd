"""The one training loop: a stream of batches and a loss function.

It clips gradients, schedules the learning rate, logs to a CSV, and writes checkpoints from which a
killed run goes on bit for bit. It runs on ``accelerate``: under ``accelerate launch`` each process
takes its share of every batch, and the loss is that of a single process (where the rows of a batch
count alike: the shares' losses are averaged, whatever number of tokens stands behind each).
Simplified away: sharded models and optimizers, fp16 loss scaling.
"""

import csv
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

Batch = dict[str, Tensor]
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
    return min(1.0, warmup, factor)


def precision_for(device: torch.device) -> str:
    """``"bf16"`` where the hardware computes it natively, else ``"no"``."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    native = any(
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return "bf16" if device.type == "cpu" and native else "no"


class MetricsFile:
    """A CSV that always equals the rows it was given; a new column rewrites it."""

    def __init__(self, path: Path | None, rows: list[dict]):
        self.path, self.rows = path, rows
        self.columns: list[str] = []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._rewrite()

    def _rewrite(self) -> None:
        for row in self.rows:
            self.columns += [name for name in row if name not in self.columns]
        part = self.path.with_suffix(".part")
        with open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(part, self.path)

    def append(self, row: dict) -> None:
        self.rows.append(row)
        if self.path is None:
            return
        if not set(row) <= set(self.columns):
            self._rewrite()
            return
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)


# --- checkpoints --------------------------------------------------------------------------------


def save_checkpoint(folder: Path, state: dict) -> None:
    """Write ``checkpoint.pt`` so that at every moment a whole one exists.

    The new file is written and synced under another name, the old one becomes
    ``checkpoint.previous.pt``, and then the new one takes its place.

    Raises:
        OSError: e.g. a full disk; the old checkpoint is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part, current = folder / "checkpoint.part", folder / "checkpoint.pt"
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise OSError(
            f"The checkpoint could not be written to {folder} ({error}). The one before is still "
            "there: make room and start again, training goes on from it."
        ) from error
    if current.exists():
        os.replace(current, folder / "checkpoint.previous.pt")
    os.replace(part, current)


def load_checkpoint(folder: Path) -> dict | None:
    """The newest readable checkpoint of the folder, or None when there is none.

    Raises:
        ValueError: there are checkpoints, and none can be read.
    """
    paths = [folder / "checkpoint.pt", folder / "checkpoint.previous.pt"]
    errors = []
    for path in (p for p in paths if p.exists()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            errors.append(f"{path.name}: {error}")
            warnings.warn(f"{path} cannot be read; trying the one before.", stacklevel=2)
    if errors:
        raise ValueError(
            f"No checkpoint of {folder} can be read ({'; '.join(errors)}). Remove the folder to "
            "start from the beginning."
        )
    return None


def _rng_state() -> dict:
    version, internal, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(), "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), *rest],
    }  # fmt: skip
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_rng_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "numpy" in state:  # not in the first version's checkpoints
        np.random.set_state(tuple(state["numpy"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _restore(state: dict, model: nn.Module, optimizer, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Put everything back and return the stream at the batch where it stood."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if hasattr(batches, "load_state_dict"):
        batches.load_state_dict(state["batches"])
        stream = iter(batches)
    else:
        stream = iter(batches)
        next(islice(stream, state["consumed"], state["consumed"]), None)
    _set_rng_state(state["rng"])
    return stream


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
        batches: dicts of tensors whose first dimension is the batch. A stream with ``state_dict``
            and ``load_state_dict`` is resumed by them; any other is read again up to where it was.
        loss_fn: (model, batch) -> loss, or (loss, {name: number}) to log more.
        max_steps: optimizer steps; fewer when the batches run out.
        optimizer: has ``step``, ``zero_grad``, ``param_groups`` and a state; AdamW when None.
        lr: of that AdamW.
        warmup_steps, schedule, decay_fraction: see ``lr_factor``.
        max_grad_norm: gradients are scaled down to this norm.
        gradient_accumulation: batches a step; their losses are averaged.
        mixed_precision: ``"no"`` (the same course on every machine), ``"bf16"``, or ``"auto"`` for
            ``precision_for`` the device.
        metrics_path: a CSV with one row a step: step, loss, lr, grad_norm, seconds, and the rest.
        checkpoint_dir: where checkpoints go; training resumes from the newest one there.
        checkpoint_every: steps between checkpoints; only the last step is saved when None.
        evaluate: (model, step) -> {name: number}, called every ``evaluate_every`` steps and at
            ``max_steps``; its numbers go into that step's row.
        progress: show a progress bar; on a terminal only when None.

    Returns:
        One dict a step, those before a resume included.

    Raises:
        ValueError: settings that make no sense, unreadable checkpoints, a batch that the
            processes cannot share equally.
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
    device = next(model.parameters()).device
    accelerator = _accelerator(device, mixed_precision)
    optimizer = optimizer or torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr, (0.9, 0.95), weight_decay=0.0
    )
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    optimizer.zero_grad()  # what an earlier run left behind when it stopped
    folder = Path(checkpoint_dir) if checkpoint_dir is not None else None
    state = load_checkpoint(folder) if folder is not None else None
    stream = iter(batches) if state is None else _restore(state, model, optimizer, batches)
    history = [] if state is None else state["history"]
    step, consumed = (0, 0) if state is None else (state["step"], state["consumed"])
    main = accelerator.is_main_process
    metrics = MetricsFile(Path(metrics_path) if metrics_path and main else None, history)
    wrapped = accelerator.prepare(model)
    wrapped.train()
    spent = history[-1]["seconds"] if history else 0.0
    started = time.perf_counter() - spent

    def save() -> None:
        if folder is not None and main:
            batches_state = batches.state_dict() if hasattr(batches, "state_dict") else None
            save_checkpoint(folder, {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                "consumed": consumed, "history": history, "batches": batches_state,
                "rng": _rng_state(),
            })  # fmt: skip

    hidden = None if progress is None else not progress  # None: hidden where there is no terminal
    bar = tqdm(total=max_steps, initial=step, desc="training", disable=hidden if main else True)
    try:
        while step < max_steps:
            factor = lr_factor(step, max_steps, warmup_steps, schedule, decay_fraction)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            micro_batches = list(islice(stream, gradient_accumulation))
            if not micro_batches:
                break
            consumed += len(micro_batches)
            row = _step(
                accelerator, wrapped, micro_batches, loss_fn, optimizer, max_grad_norm, step
            )
            step += 1
            row = {"step": step, **row, "lr": optimizer.param_groups[0]["lr"]}
            if evaluate and (step == max_steps or (evaluate_every and step % evaluate_every == 0)):
                figures = evaluate(model, step) or {}
                row |= {name: float(value) for name, value in figures.items()}
                wrapped.train()
            metrics.append(row | {"seconds": round(time.perf_counter() - started, 3)})
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
            if checkpoint_every and step % checkpoint_every == 0 and step < max_steps:
                save()
        if not state or step > state["step"]:
            save()
        accelerator.wait_for_everyone()  # or another process might look for it too early
    finally:
        bar.close()
        _release(model)
    return history


def _release(model: nn.Module) -> None:
    """Take off what accelerate hangs on a model, a forward in bf16 and a mark; evaluation mode."""
    model.eval()
    model.__dict__.pop("_is_accelerate_prepared", None)
    if (original := model.__dict__.pop("_original_forward", None)) is not None:
        del model.forward
        if original != model.forward:  # somebody had given this object a forward of its own
            model.forward = original


def _step(accelerator, model, micro_batches, loss_fn, optimizer, max_grad_norm, step) -> dict:
    """One optimizer step; returns its loss, gradient norm and logged numbers."""
    rank, world = accelerator.process_index, accelerator.num_processes
    losses, logged = [], {}
    for batch in micro_batches:
        share = {k: _share(v, rank, world).to(accelerator.device) for k, v in batch.items()}
        with accelerator.autocast():
            result = loss_fn(model, share)
        loss, numbers = result if isinstance(result, tuple) else (result, {})
        accelerator.backward(loss / len(micro_batches))
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
        for name, value in numbers.items():
            if world > 1:
                value = torch.as_tensor(value, dtype=torch.float32, device=accelerator.device)
                value = accelerator.reduce(value.detach(), "mean")
            logged[name] = logged.get(name, 0.0) + float(value) / len(micro_batches)
    mean = sum(losses) / len(losses)
    norm = float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
    for name, value in (("loss", mean), ("norm of the gradient", norm)):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The {name} of step {step + 1} is {value}. Lower the learning rate or look at the "
                "batch; the last checkpoint is untouched."
            )
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": mean, "grad_norm": norm, **logged}


def _share(tensor: Tensor, rank: int, world: int) -> Tensor:
    """This process's rows of a batch: every ``world``-th one."""
    if len(tensor) % world:
        raise ValueError(
            f"A batch of {len(tensor)} rows cannot be shared equally by {world} processes: make "
            "its size a multiple of their number."
        )
    return tensor[rank::world]


def _accelerator(device: torch.device, mixed_precision: str):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    precision = precision_for(device) if mixed_precision == "auto" else mixed_precision
    if precision not in ("no", "bf16"):
        raise ValueError(f'mixed_precision must be "auto", "no" or "bf16", got {precision!r}.')
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run may have set others
    return Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
