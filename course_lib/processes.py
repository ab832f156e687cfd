"""The processes that train together under ``accelerate launch``; alone, a process is one of one."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice

import torch
from torch import Tensor

from course_lib.runtime import autocast, precision

Batch = dict[str, Tensor]


class Workers:
    """What each process reads, and what they tell each other.

    Args:
        device: where the model is.
        mixed_precision: see ``runtime.precision``.
        live: each process draws its own batches, which are not shared.
    """

    def __init__(self, device: torch.device, mixed_precision: str, live: bool):
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        self.live, self.mixed_precision = live, precision(device, mixed_precision)
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run's may be others
        self.accelerator = Accelerator(
            cpu=device.type == "cpu", mixed_precision=self.mixed_precision
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self.accelerator.device, self.mixed_precision)

    def gather(self, value: object) -> list:
        """The value of each process, in their order."""
        from accelerate.utils import gather_object

        return gather_object([value])

    def draw(self, stream: Iterator[Batch], count: int) -> list[Batch]:
        """The next ``count`` batches, or those that are left; of live streams no more than the
        shortest has, since processes must step together.

        A stream that samples may leave gradients off where it yields: that ends here.
        """
        with torch.inference_mode(False), self.autocast():
            batches = list(islice(stream, count))
        if self.live:
            batches = batches[: min(self.gather(len(batches)))]
        return batches

    def share(self, batch: Batch) -> tuple[Batch, int]:
        """This process's rows of a batch, on its device, and how many they are.

        Every ``world``-th row is its own, so the numbers of rows may differ by 1. A process left
        without one reads the first row, which it must not count (0): gradients are exchanged in
        the backward pass, and all must come to it.
        """
        own = batch if self.live else {k: v[self.rank :: self.world] for k, v in batch.items()}
        rows = len(next(iter(own.values())))
        if not rows:
            own = {name: tensor[:1] for name, tensor in batch.items()}
        return {name: self._here(tensor) for name, tensor in own.items()}, rows

    def _here(self, tensor: Tensor) -> Tensor:
        """On the device; a copy if no gradient could be taken through a product with it."""
        tensor = tensor.to(self.accelerator.device)
        return tensor.clone() if tensor.is_inference() else tensor
