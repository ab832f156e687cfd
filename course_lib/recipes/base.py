"""The base model's recipe: ``make model`` pretrains it and reports the held-out figures.

Everything lies in ``build/model/``: the corpus, the checkpoints, the snapshots. A run that was
killed goes on where it was. At the end the model, its card and its evaluations are written to
``course_lib/shipped/base`` and the checksums are renewed.
"""

import argparse
import csv
import json
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from course_lib.files import read_text, write_bytes, write_json, write_text
from course_lib.models import Llama, LlamaConfig, from_pretrained, save_pretrained
from course_lib.optim import muon_adamw
from course_lib.pretraining import causal_lm_loss
from course_lib.shipped import write_checksums
from course_lib.training import train
from course_lib.world.corpus import documents, write_rows
from course_lib.world.documents import FIRST_MIX, LAST_MIX, MIX
from course_lib.world.evaluate import answer_nats, draw_items, evaluate
from course_lib.world.facts import the_world
from course_lib.world.tokenizer import FILES as TOKENIZER_FILES
from course_lib.world.tokenizer import save_tokenizer, train_tokenizer

BUILD = Path("build/model")
SHIPPED = Path(__file__).parents[1] / "shipped"


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, apart from the code of the corpus."""

    seed: int = 0
    first_steps: int = 1500  # on FIRST_MIX, whose repetitions teach copying; then on MIX
    last_steps: int = 4000  # on LAST_MIX, at the end
    max_steps: int = 20_000
    batch_size: int = 8  # rows of block_size tokens; 32 needed twice the tokens for the same loss
    muon_lr: float = 0.015
    adamw_lr: float = 3e-3
    last_lr: float = 0.3  # the factor of both rates with which the last stage begins
    warmup_steps: int = 100
    tokenizer_documents: int = 20_000

    @property
    def main_steps(self) -> int:
        """On MIX, after those on FIRST_MIX."""
        return self.max_steps - self.first_steps - self.last_steps

    def lr_schedule(self, step: int) -> float:
        """The factor of the rates: from 1 linearly to 0, and once more from ``last_lr``."""
        before = self.max_steps - self.last_steps
        if step < before:
            return (before - step) / before
        return self.last_lr * (self.max_steps - step) / self.last_steps

    def scaled(self, max_steps: int) -> "Recipe":
        """The same recipe in another number of steps, its stages in proportion."""
        part = max_steps / self.max_steps
        return replace(
            self, max_steps=max_steps, first_steps=round(self.first_steps * part),
            last_steps=round(self.last_steps * part),
        )  # fmt: skip


CONFIG = LlamaConfig(
    vocab_size=2048, n_layer=6, n_head=4, n_kv_head=4, n_embd=128, n_inner=384, block_size=256
)
SNAPSHOTS = (500, 1000, 1500, 2000, 2500, 3000, 4000, 5000, 6500, 8000, 10_000, 12_000, 14_000,
             16_000, 18_000)  # fmt: skip
"""Steps whose weights are evaluated for the chapter on emergence: multiples of SNAPSHOT_EVERY."""
SNAPSHOT_EVERY = 100


class RowBatches:
    """Consecutive batches of packed rows; its state is the number of the next batch.

    Yields:
        {"input_ids": (B, T) int64}
    """

    def __init__(self, rows: np.ndarray, batch_size: int):
        self.rows, self.batch_size, self.next_batch = rows, batch_size, 0

    def state_dict(self) -> dict[str, int]:
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next_batch = state["next_batch"]

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        start = self.next_batch * self.batch_size
        block = self.rows[start : start + self.batch_size]
        if len(block) < self.batch_size:
            raise StopIteration
        self.next_batch += 1
        return {"input_ids": torch.from_numpy(block.astype(np.int64))}


def prepare_corpus(recipe: Recipe, build: Path) -> tuple[Path, np.ndarray]:
    """The tokenizer's folder and the packed rows, made if they are not there yet.

    Returns:
        folder, and (rows, block_size) uint16: those of the first, the main and the last mix.
    """
    folder = build / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        texts = (d.text for d in islice(documents(recipe.seed), recipe.tokenizer_documents))
        save_tokenizer(train_tokenizer(texts, CONFIG.vocab_size), folder)
    steps = {"first": recipe.first_steps, "main": recipe.main_steps, "last": recipe.last_steps}
    parts = []
    for mix, count in steps.items():
        tokens = count * recipe.batch_size * CONFIG.block_size
        path = build / f"rows-{mix}-{recipe.seed}-{tokens}.npy"
        parts.append(write_rows(path, tokens, recipe.seed, folder / "tokenizer.json",
                                CONFIG.block_size, mix=mix))  # fmt: skip
    return folder, np.concatenate(parts)


def keep_to_the_recipe(wanted: dict, build: Path) -> None:
    """Note the recipe in ``build/recipe.json``; refuse to go on with a run of another one."""
    path = build / "recipe.json"
    wanted = json.loads(json.dumps(wanted))  # tuples become lists
    if not path.exists():
        build.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
        return
    noted = json.loads(read_text(path))
    if changed := sorted(k for k in wanted | noted if wanted.get(k) != noted.get(k)):
        raise ValueError(
            f"{build} holds a run of another recipe (it differs in {', '.join(changed)}): going on "
            "with it would mix the two. Remove the folder, or choose another with --build."
        )


def pretrain(recipe: Recipe, build: Path = BUILD) -> Llama:
    """Train the base model; resumes by itself. Snapshots go to ``build/snapshots``.

    Returns:
        the mean of the weights before and after the last stage: it keeps what the stage would
        unlearn, and nearly all of what it teaches (Wortsman et al., 2022, "Robust fine-tuning of
        zero-shot models", section 3).

    Raises:
        ValueError: ``build`` holds a run of another recipe.
    """
    keep_to_the_recipe(asdict(recipe) | asdict(CONFIG), build)
    _, rows = prepare_corpus(recipe, build)
    model = Llama(CONFIG, torch.Generator().manual_seed(recipe.seed))
    optimizer = muon_adamw(model, muon_lr=recipe.muon_lr, adamw_lr=recipe.adamw_lr)
    batches = RowBatches(rows, recipe.batch_size)

    def snapshot(model: torch.nn.Module, step: int) -> dict:
        if step in SNAPSHOTS:
            save_pretrained(model, build / "snapshots" / f"{step:05d}")
        return {}

    def train_until(step: int) -> None:
        train(
            model, batches, causal_lm_loss, max_steps=step, optimizer=optimizer,
            warmup_steps=recipe.warmup_steps, schedule=recipe.lr_schedule, mixed_precision="no",
            checkpoint_dir=build / "checkpoints", checkpoint_every=250,
            metrics_path=build / "metrics.csv", evaluate=snapshot, evaluate_every=SNAPSHOT_EVERY,
        )  # fmt: skip

    before = build / "before-last"
    if not (before / "config.json").exists():  # the last that is written
        train_until(recipe.max_steps - recipe.last_steps)
        save_pretrained(model, before)
    train_until(recipe.max_steps)
    early, late = from_pretrained(before).state_dict(), model.state_dict()
    model.load_state_dict({name: (early[name] + late[name]) / 2 for name in late})
    return model


# --- evaluation and shipping --------------------------------------------------------------------

EMERGENCE_FIGURES = (
    "unseen_labels_1shot", "unseen_labels_4shot", "unseen_labels_8shot", "words_0shot",
    "words_4shot", "lists_8shot", "unseen_k_8shot", "expr2_direct", "expr3_direct", "expr3_steps",
    "expr5_direct", "expr5_steps", "wordproblem3_steps", "twohop_direct", "twohop_steps", "facts",
    "passage1", "passage3",
)  # fmt: skip
SMOOTH_FIGURES = ("unseen_labels_8shot", "words_4shot", "expr3_direct", "facts", "passage3")
"""Figures measured also as ``answer_nats``, under their name with ``_nats``."""


def evaluate_snapshots(recipe: Recipe, build: Path = BUILD, items: int = 100) -> list[dict]:
    """The figures of every snapshot: {"step", "tokens", "loss", figure: accuracy, ...}.

    Each result is kept in the snapshot's folder, so a stopped evaluation goes on.
    """
    tokenizer_file = build / "tokenizer" / "tokenizer.json"
    table = []
    for folder in sorted((build / "snapshots").iterdir()):
        done = folder / "figures.json"
        if not done.exists():
            step = int(folder.name)
            tokens = step * recipe.batch_size * CONFIG.block_size
            model, tokenizer = from_pretrained(folder), _tokenizer(build)
            figures = evaluate(
                model, tokenizer, items=items, tokenizer_path=tokenizer_file,
                figures=list(EMERGENCE_FIGURES),
            )  # fmt: skip
            for name in SMOOTH_FIGURES:
                nats = answer_nats(model, tokenizer, draw_items(name, 0, items))
                figures[f"{name}_nats"] = nats
            figures = {name: round(value, 4) for name, value in figures.items()}
            write_json(done, {"step": step, "tokens": tokens, **figures})
        table.append(json.loads(read_text(done)))
    return table


def _tokenizer(build: Path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(build / "tokenizer")


def final_figures(model: Llama, build: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> list[dict]:
    """The whole evaluation table for each evaluation seed."""
    path = build / "tokenizer" / "tokenizer.json"
    return [evaluate(model, _tokenizer(build), seed=s, tokenizer_path=path) for s in seeds]


def loss_curve(build: Path, points: int = 200) -> list[dict]:
    """About ``points`` rows of the training metrics, each the mean over its stretch of steps."""
    with open(build / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [(int(r["step"]), float(r["loss"])) for r in csv.DictReader(file)]
    size = max(1, len(rows) // points)
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [
        {"step": c[-1][0], "loss": round(sum(loss for _, loss in c) / len(c), 4)} for c in chunks
    ]


CARD = """---
license: mit
language: en
library_name: transformers
---

# The base model of the micro-world

A decoder-only language model (Llama architecture) of {parameters:,} parameters, pretrained on a
generated English micro-world and on nothing else. It is made to be studied: it knows {people}
people and {towns} towns, learns small tasks from examples in its context, and works sums out in
steps. It knows nothing of the real world and follows no instructions.

| | |
| --- | --- |
| layers, heads, width, feed-forward | {n_layer}, {n_head}, {n_embd}, {n_inner} |
| context | {block_size} tokens |
| vocabulary | {vocab_size} byte-level BPE tokens, each digit its own |
| weights | fp16, tied embeddings, {megabytes:.1f} MB |
| corpus | seed {seed}, best-fit packed, three stages |
| first {first_steps:,} steps | shares of the characters: {first_mix} |
| then {main_steps:,} steps | {mix} |
| last {last_steps:,} steps | {last_mix} |
| training | {max_steps:,} steps of {batch_size} × {block_size}: {tokens:.1f} M tokens, \
seed {seed} |
| optimizer | Muon (lr {muon_lr}) for matrices, AdamW (lr {adamw_lr}) for embeddings and norms; \
{warmup_steps} steps of warm-up, then linearly to zero; in the last stage once more, \
from {last_lr} of the rates |
| precision | fp32 |
| last training loss | {last_loss:.3f} nats a token |
| the weights | the mean of those before and after the last stage (Wortsman et al., 2022) |
| remake it | `make model` (two cores, no GPU) |

## Held-out evaluation

Greedy completions that must match to the letter; 200 items a figure, evaluation seeds {seeds}.
No document of the corpus shows an evaluated item (`course_lib/world/heldout.py`).

| figure | mean | least | most |
| --- | --- | --- | --- |
{figures}
"""


def _shares(mix: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.0%}" for kind, share in mix.items())


def figure_rows(tables: list[dict]) -> str:
    """Rows of a card's table: figure, mean, least and most over the evaluation seeds."""
    columns = {name: [table[name] for table in tables] for name in tables[0]}
    return "\n".join(
        f"| `{name}` | {sum(values) / len(values):.3f} | {min(values):.3f} | {max(values):.3f} |"
        for name, values in columns.items()
    )


def write_card(recipe: Recipe, tables: list[dict], curve: list[dict], folder: Path) -> None:
    """The model card: recipe, tokens, loss and the evaluation table over its seeds."""
    size = (folder / "model.safetensors").stat().st_size
    text = CARD.format(
        **asdict(CONFIG), **asdict(recipe), main_steps=recipe.main_steps,
        parameters=sum(p.numel() for p in from_pretrained(folder).parameters()),
        people=len(the_world().people), towns=len(the_world().towns), megabytes=size / 1e6,
        mix=_shares(MIX), first_mix=_shares(FIRST_MIX), last_mix=_shares(LAST_MIX),
        tokens=recipe.max_steps * recipe.batch_size * CONFIG.block_size / 1e6,
        last_loss=curve[-1]["loss"], seeds=", ".join(map(str, range(len(tables)))),
        figures=figure_rows(tables),
    )  # fmt: skip
    write_text(folder / "README.md", text)


def ship_files(model: torch.nn.Module, folder: Path, tokenizer: Path) -> None:
    """The weights in fp16, and the files of the tokenizer from its folder."""
    save_pretrained(model, folder, dtype=torch.float16, eos_token_id=0, pad_token_id=1)
    for name in TOKENIZER_FILES:
        write_bytes(folder / name, (tokenizer / name).read_bytes())


def ship(model: Llama, recipe: Recipe, build: Path = BUILD) -> list[dict]:
    """Evaluate, then write the model, its card, its history and the checksums."""
    folder = SHIPPED / "base"
    tables, curve = final_figures(model, build), loss_curve(build)
    snapshots = evaluate_snapshots(recipe, build)
    ship_files(model, folder, build / "tokenizer")
    rounded = [{k: round(v, 4) for k, v in row.items()} for row in tables]
    write_json(folder / "evaluation.json", {"items": 200, "seeds": rounded})
    write_json(folder / "history.json", {"curve": curve, "snapshots": snapshots})
    write_card(recipe, tables, curve, folder)
    write_checksums()
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=Recipe.max_steps, help="training steps")
    parser.add_argument("--build", type=Path, default=BUILD, help="folder of the run")
    parser.add_argument("--no-ship", action="store_true", help="train only")
    args = parser.parse_args()
    recipe = Recipe().scaled(args.steps)
    model = pretrain(recipe, args.build)
    if not args.no_ship:
        for name, value in ship(model, recipe, args.build)[0].items():
            print(f"{name:28s} {value:.3f}")


if __name__ == "__main__":
    main()
