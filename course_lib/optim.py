"""Muon for matrices beside AdamW for everything else.

``torch.optim.Muon`` runs its Newton-Schulz iteration in bfloat16, which a CPU without bfloat16
arithmetic does about ninety times as slowly as float32. This one works in float32 and handles all
matrices of one shape in a single batched product.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a·x + b·x³ + c·x⁵ that drives singular values towards 1 (Jordan et al., 2024)."""

HEADS = ("head", "lm_head", "classifier", "score", "qa_outputs", "value_head")
"""Names of what turns hidden states into outputs: ours, and those of transformers and trl."""


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: U Vᵀ of each U S Vᵀ.

    Newton-Schulz iteration of Jordan et al., "Muon: An optimizer for hidden layers in neural
    networks" (2024). Singular values end up between 0.68 and 1.21, which is enough; those below
    1/500 of the matrix's norm stay smaller.

    Args:
        matrices: (N, rows, columns).

    Returns:
        (N, rows, columns).
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """Momentum whose step is made orthogonal, for the hidden matrices of a network.

    Args:
        params: two-dimensional parameters.
        lr: step size; a matrix with more rows than columns takes a step larger by √(rows/columns).
        momentum: Nesterov momentum.
        weight_decay: decoupled, as in AdamW.

    Raises:
        ValueError: a parameter that is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(
                        f"Muon takes matrices, got a parameter of shape {tuple(p.shape)}: give "
                        "it to AdamW (see muon_adamw)."
                    )

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                self._step_shape(shape, params, group)

    def _step_shape(self, shape: torch.Size, params: list[nn.Parameter], group: dict) -> None:
        momentum, lr = group["momentum"], group["lr"]
        grads = [p.grad for p in params]
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        looked_ahead = torch.stack(torch._foreach_add(grads, buffers, alpha=momentum))
        updates = orthogonalize(looked_ahead.float()) * max(1.0, shape[0] / shape[1]) ** 0.5
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, [u.to(p.dtype) for u, p in zip(updates, params, strict=True)],
                            alpha=-lr)  # fmt: skip


class CombinedOptimizer:
    """Several optimizers that step together and save as one."""

    def __init__(self, *optimizers: Optimizer):
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict]:
        return [group for o in self.optimizers for group in o.param_groups]

    def step(self) -> None:
        for o in self.optimizers:
            o.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for o in self.optimizers:
            o.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return {"optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state: dict) -> None:
        for o, s in zip(self.optimizers, state["optimizers"], strict=True):
            o.load_state_dict(s)


def muon_adamw(
    model: nn.Module, muon_lr: float = 0.02, adamw_lr: float = 3e-3, weight_decay: float = 0.0
) -> CombinedOptimizer:
    """Muon for the hidden matrices; AdamW for embeddings, heads, norms, biases and soft prompts.

    A hidden matrix is the ``weight`` of a module, with at least two rows and two columns, that is
    neither an embedding nor in a head: a module named in ``HEADS``, wherever it stands in the
    model. So what gives one scalar a token, and matrices that are no layer's weight (the vectors
    of a soft prompt, positions), go to AdamW.

    Raises:
        ValueError: a model none of whose parameters is trainable.
    """
    outer: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or name.rpartition(".")[2] in HEADS:
            outer |= {id(p) for p in module.parameters()}
    weights = {
        id(m.weight) for m in model.modules() if isinstance(getattr(m, "weight", None), Tensor)
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = {id(p) for p in trainable if p.ndim == 2 and min(p.shape) > 1} & weights - outer
    hidden = [p for p in trainable if id(p) in matrices]
    rest = [p for p in trainable if id(p) not in matrices]
    if not trainable:
        raise ValueError("The model has no trainable parameter: set requires_grad on some.")
    optimizers: list[Optimizer] = []
    if hidden:
        optimizers.append(Muon(hidden, lr=muon_lr, weight_decay=weight_decay))
    if rest:
        optimizers.append(
            AdamW(rest, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=weight_decay)
        )
    return CombinedOptimizer(*optimizers)
