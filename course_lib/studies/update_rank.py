"""Is the update of a full fine-tuning of low rank? Its singular values, and what is left if cut.

The instruction-tuned model learns the codes of ``codes`` with all its parameters. ΔW of each linear
layer is taken apart; then only the r largest singular values of each are kept (the best
approximation of that rank: Eckart and Young, 1936), and the model is asked again.
"""

import copy

import torch
from torch import Generator, Tensor, nn

from course_lib import plotting
from course_lib.measuring import mean_interval
from course_lib.peft import find_linear
from course_lib.studies import codes, tuning
from course_lib.studies.stored import Results
from course_lib.studies.tuning import shipped

RANKS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
GRID = {"full": {"lr": 1e-3}}
SEEDS = range(8)
MODELS = ("instruct",)
USES = (codes.draw_codes, codes.rows, codes.correct, codes.prepared, codes.tuned, tuning.tuned,
        tuning.chat_replies)  # fmt: skip
CHECKS = {"full": ("energy 8",)}
LEAST_SPREAD = {"energy 8": 0.01}


def energy(matrix: Tensor, r: int) -> float:
    """Share of the squared norm of a matrix that its r largest singular values hold."""
    squares = torch.linalg.svdvals(matrix.double()) ** 2
    return (squares[:r].sum() / squares.sum()).item()


def cut(matrix: Tensor, r: int) -> Tensor:
    """The nearest matrix of rank r, of the same shape."""
    U, S, V = torch.linalg.svd(matrix, full_matrices=False)
    return (U[:, :r] * S[:r]) @ V[:r]


def updates(start: nn.Module, tuned: nn.Module) -> dict[str, Tensor]:
    """Name -> ΔW, (out, in), of every linear layer but the output's."""
    before, after = (find_linear(model, "all-linear") for model in (start, tuned))
    return {name: (after[name].weight - before[name].weight).detach() for name in before}


def with_rank(start: nn.Module, tuned: nn.Module, r: int) -> nn.Module:
    """A copy of the tuned model in which the updates of all linear layers are cut to rank r."""
    model = copy.deepcopy(tuned)
    layers = find_linear(model, "all-linear")
    before = find_linear(start, "all-linear")
    with torch.no_grad():
        for name, delta in updates(start, tuned).items():
            layers[name].weight.copy_(before[name].weight + cut(delta, r))
    return model


def run(setting: dict, seed: int) -> dict[str, float]:
    """``energy r`` of the updates, the mean over layers, and ``random r`` of Gaussian matrices of
    their shapes; ``correct r``, the accuracy with updates cut to rank r, on words of no training
    row; ``correct``, uncut."""
    start, tokenizer = shipped("instruct")
    pairs, asked = codes.draw_codes(seed)
    tuned = codes.tuned(start, tokenizer, pairs, seed, setting["lr"])
    deltas = list(updates(start, tuned).values())
    generator = Generator().manual_seed(seed)
    noise = [torch.randn(delta.shape, generator=generator) for delta in deltas]
    found = {"correct": codes.correct(tuned, tokenizer, asked)}
    for r in RANKS:
        found[f"correct {r}"] = codes.correct(with_rank(start, tuned, r), tokenizer, asked)
        for name, matrices in (("energy", deltas), ("random", noise)):
            found[f"{name} {r}"] = sum(energy(m, r) for m in matrices) / len(matrices)
    return found


def draw(results: Results):
    """Energy and accuracy against the rank, of the updates and of random matrices."""
    fig, axes = plotting.panels("The update of a full fine-tuning, cut to rank r", 2, size=(9, 3.4))
    at = [max(r, 0.5) for r in RANKS]
    lines = ((axes[0], "energy", "updates"), (axes[0], "random", "random matrices"),
             (axes[1], "correct", "updates cut to rank r"))  # fmt: skip
    for number, (ax, name, label) in enumerate(lines):
        bands = [mean_interval(results.of("full", f"{name} {r}").values) for r in RANKS]
        (line,) = ax.plot(at, [b[0] for b in bands], marker=plotting.MARKERS[number], label=label)
        ax.fill_between(at, [b[1] for b in bands], [b[2] for b in bands], alpha=0.15, linewidth=0,
                        color=line.get_color())  # fmt: skip
    for ax, label in zip(axes, ("share of the squared norm", "correct"), strict=True):
        ax.set(xscale="log", xlabel="rank r", ylabel=label, ylim=(-0.05, 1.05))
        ax.set_xticks(at, list(map(str, RANKS)))
        ax.minorticks_off()
        ax.legend(loc="lower right")
    return fig
