"""One model, several LoRA adapters, one batch: each row has its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from course_lib.lora import check_names, check_unmerged, lora_layers


@contextmanager
def adapter_rows(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """Within it each row of a batch has its own adapter, and one reading of W serves them all.

    Args:
        names: (B,) of them, an adapter's or None for the base alone. A batch of another number of
            rows is refused.

    Raises:
        ValueError: a name that is not there, a model that is merged.
    """
    check_names(model, [name for name in names if name is not None])
    check_unmerged(model, "serve several adapters")
    layers = lora_layers(model).values()
    before = [(layer.rows, layer.n_row) for layer in layers]
    groups = {name: [i for i, n in enumerate(names) if n == name]
              for name in dict.fromkeys(names) if name is not None}  # fmt: skip
    device = next(model.parameters()).device
    indices = {name: torch.tensor(rows, device=device) for name, rows in groups.items()}
    for layer in layers:
        layer.rows = [(name, rows) for name, rows in indices.items() if name in layer.settings]
        layer.n_row = len(names)
    try:
        yield
    finally:
        for layer, (rows, n_row) in zip(layers, before, strict=True):
            layer.rows, layer.n_row = rows, n_row


class _RowCache:
    """A model's cache and the adapters of the rows that are in it."""

    def __init__(self, cache, names: list[str | None]):
        self.cache, self.names = cache, names

    def select(self, rows: Tensor) -> None:
        """Keep only the given rows, (B',) indices: as ``generate`` does when others have ended."""
        keep = self.cache.select if hasattr(self.cache, "select") else (
            self.cache.batch_select_indices
        )  # fmt: skip
        keep(rows)
        self.names = [self.names[i] for i in rows.tolist()]


class AdapterRows(nn.Module):
    """A model each of whose rows has its own adapter, for ``course_lib.generate``: when rows have
    ended and are dropped from the batch, their names go with them.

    Args:
        model: with adapters; one of our decoders or any ``AutoModelForCausalLM``.
        names: see ``adapter_rows``.
    """

    def __init__(self, model: nn.Module, names: Sequence[str | None]):
        super().__init__()
        check_names(model, [name for name in names if name is not None])
        self.model, self.names = model, list(names)

    @property
    def config(self):
        """The model's."""
        return self.model.config

    def new_cache(self, capacity: int = 0) -> _RowCache | None:
        """An empty one of the model's, if it makes its own."""
        if not hasattr(self.model, "new_cache"):
            return None
        return _RowCache(self.model.new_cache(capacity), self.names)

    def forward(self, input_ids: Tensor, past_key_values: _RowCache | None = None, **inputs):
        """What the model gives; a cache comes back with the rows' names."""
        names = self.names if past_key_values is None else past_key_values.names
        cache = None if past_key_values is None else past_key_values.cache
        with adapter_rows(self.model, names):
            out = self.model(input_ids, past_key_values=cache, **inputs)
        if out.past_key_values is not None:
            out.past_key_values = _RowCache(out.past_key_values, names)
        return out
