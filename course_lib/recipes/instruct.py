"""The instruction-tuned model's recipe: the base model trained on tasks in chat format, and replay.

Every task of ``world.instructions`` with all its templates, and documents of the pretraining kind
so that nothing is forgotten. Run by ``make model`` after the base model.
Simplified away: several turns, system messages, refusals.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from course_lib.chat import answered, encode_chat, turns
from course_lib.files import write_json, write_text
from course_lib.optim import muon_adamw
from course_lib.recipes.base import (
    SHIPPED,
    figure_rows,
    keep_to_the_recipe,
    loss_curve,
    ship_files,
)
from course_lib.rows import Row, batches, document_row, mix
from course_lib.sft import sft_loss
from course_lib.shipped import load_model_from, model_path, write_checksums
from course_lib.training import train
from course_lib.world.corpus import documents
from course_lib.world.evaluate import evaluate
from course_lib.world.instructions import CLUSTERS, INSTRUCTIONS, draw_example, examples

BUILD = Path("build/instruct")
LONG = {"reasoning": 2.0, "questions": 2.0, "reading": 2.0}
"""Clusters drawn more often than the rest: one task stands there for a whole ability."""


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, apart from the base model and the code of the data."""

    seed: int = 0
    max_steps: int = 2500
    batch_size: int = 32  # examples and documents, packed into fewer rows
    replay: float = 0.3  # share of them that are documents
    muon_lr: float = 3e-3
    adamw_lr: float = 7e-4
    warmup_steps: int = 50


def task_sources(tokenizer, seed: int) -> tuple[list[Iterator[Row]], list[float]]:
    """Endless rows of each task in chat format, and how often each is drawn (rates of sum 1)."""

    def task_rows(name: str) -> Iterator[Row]:
        for example in examples(seed, name):
            yield encode_chat(tokenizer, turns(example.prompt, example.response))

    weights = [LONG.get(task.cluster, 1.0) for task in INSTRUCTIONS.values()]
    return [*map(task_rows, INSTRUCTIONS)], [weight / sum(weights) for weight in weights]


class InstructionBatches:
    """Packed batches of all tasks and of replay; its state is the number of the next batch.

    Yields:
        what ``rows.collate`` gives.
    """

    def __init__(self, recipe: Recipe, tokenizer, block_size: int):
        self.recipe, self.tokenizer, self.block_size = recipe, tokenizer, block_size
        self.next_batch, self.stream = 0, self._stream()

    def _stream(self) -> Iterator[dict[str, torch.Tensor]]:
        recipe, tokenizer = self.recipe, self.tokenizer
        tasks, rates = task_sources(tokenizer, recipe.seed)
        replay = (document_row(tokenizer, d.text, self.block_size) for d in documents(recipe.seed))
        rates = [(1 - recipe.replay) * rate for rate in rates]
        rows = mix([*tasks, replay], [*rates, recipe.replay],
                   torch.Generator().manual_seed(recipe.seed))  # fmt: skip
        return batches(rows, recipe.batch_size, tokenizer.pad_token_id,
                       block_size=self.block_size, packed=True)  # fmt: skip

    def state_dict(self) -> dict[str, int]:
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next_batch, self.stream = state["next_batch"], self._stream()
        for _ in islice(self.stream, self.next_batch):
            pass

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        batch = next(self.stream)
        self.next_batch += 1
        return batch


def tune(recipe: Recipe, base: Path, build: Path = BUILD) -> nn.Module:
    """Train the model in the folder ``base``; resumes by itself.

    Raises:
        ValueError: ``build`` holds a run of another recipe.
    """
    keep_to_the_recipe(asdict(recipe), build)
    model, tokenizer = load_model_from(base)
    train(
        model,
        InstructionBatches(recipe, tokenizer, model.config.block_size),
        sft_loss,
        max_steps=recipe.max_steps,
        optimizer=muon_adamw(model, muon_lr=recipe.muon_lr, adamw_lr=recipe.adamw_lr),
        warmup_steps=recipe.warmup_steps,
        mixed_precision="no",
        checkpoint_dir=build / "checkpoints",
        checkpoint_every=250,
        metrics_path=build / "metrics.csv",
    )
    return model.eval()


# --- evaluation and shipping --------------------------------------------------------------------


def instruction_figures(
    model: nn.Module, tokenizer, seed: int = 0, items_per_task: int = 10
) -> dict[str, float]:
    """Share of right answers to instructions about held-out items.

    Args:
        seed: draws the items.

    Returns:
        ``instructions_all``, ``instructions_<cluster>`` of each cluster, and
        ``instructions_unseen_wording`` with templates that no training uses.
    """
    rng = random.Random(f"instruction figures {seed}")

    def hits(unseen: bool) -> dict[str, list[bool]]:
        result: dict[str, list[bool]] = {name: [] for name in INSTRUCTIONS}
        for long in (False, True):  # those with steps need room; the others would wait for them
            some = [draw_example(rng, name, True, unseen=unseen)
                    for name, task in INSTRUCTIONS.items() if (task.cluster == "reasoning") == long
                    for _ in range(items_per_task)]  # fmt: skip
            pairs = [(example.prompt, example.response) for example in some]
            right = answered(model, tokenizer, pairs, 72 if long else 24)
            for example, hit in zip(some, right, strict=True):
                result[example.task].append(hit)
        return result

    def share(of: dict[str, list[bool]], names) -> float:
        every = [hit for name in names for hit in of[name]]
        return sum(every) / len(every)

    seen, unseen = hits(False), hits(True)
    return {
        "instructions_all": share(seen, INSTRUCTIONS),
        "instructions_unseen_wording": share(unseen, INSTRUCTIONS),
        **{f"instructions_{cluster}": share(seen, names) for cluster, names in CLUSTERS.items()},
    }


CARD = """---
license: mit
language: en
library_name: transformers
---

# The instruction-tuned model of the micro-world

The base model, trained further on {tasks} tasks in chat format, with documents of the pretraining
kind among them. It answers one turn: `<|user|> question<|assistant|>`, closed by `<|end|>`
(`chat_template` of the tokenizer).

| | |
| --- | --- |
| base model | `base`, all weights trained |
| data | {tasks} tasks in {clusters} clusters (`course_lib/world/instructions.py`), seed {seed}; \
{replay:.0%} of the rows are documents |
| loss | cross-entropy on the responses alone, on every token of a document |
| training | {max_steps:,} steps of {batch_size} rows, packed into rows of 256 tokens |
| optimizer | Muon (lr {muon_lr}) for matrices, AdamW (lr {adamw_lr}) for embeddings and norms; \
{warmup_steps} steps of warm-up, then linearly to zero |
| precision | fp32 |
| weights | fp16, {megabytes:.1f} MB |
| last training loss | {last_loss:.3f} nats a token |
| remake it | `make model` (two cores, no GPU) |

## Held-out evaluation

Greedy answers that must match to the letter, evaluation seeds {seeds}. Figures of instructions: 10
items of each task that neither the corpus nor the training shows; all others: 200 items, as on the
base model's card.

| figure | mean | least | most |
| --- | --- | --- | --- |
{figures}
"""


def write_card(recipe: Recipe, tables: list[dict], last_loss: float, folder: Path) -> None:
    """The model card: data, training and the evaluation table over its seeds."""
    text = CARD.format(
        **asdict(recipe), tasks=len(INSTRUCTIONS), clusters=len(CLUSTERS),
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6, last_loss=last_loss,
        seeds=", ".join(map(str, range(len(tables)))), figures=figure_rows(tables),
    )  # fmt: skip
    write_text(folder / "README.md", text)


def ship(model: nn.Module, recipe: Recipe, build: Path = BUILD) -> list[dict]:
    """Evaluate, then write the model, its card, its loss curve and the checksums."""
    base, folder = model_path("base"), SHIPPED / "instruct"
    _, tokenizer = load_model_from(base)
    tables = [
        instruction_figures(model, tokenizer, seed)
        | evaluate(model, tokenizer, seed=seed, tokenizer_path=base / "tokenizer.json")
        for seed in (0, 1, 2)
    ]
    curve = loss_curve(build)
    ship_files(model, folder, base)
    rounded = [{name: round(value, 4) for name, value in table.items()} for table in tables]
    write_json(folder / "evaluation.json", {"items": 200, "seeds": rounded})
    write_json(folder / "history.json", {"curve": curve})
    write_card(recipe, tables, curve[-1]["loss"], folder)
    write_checksums()
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=Recipe.max_steps, help="training steps")
    parser.add_argument("--base", type=Path, help="folder of the base model (default: shipped)")
    parser.add_argument("--build", type=Path, default=BUILD, help="folder of the run")
    parser.add_argument("--no-ship", action="store_true", help="train only")
    args = parser.parse_args()
    recipe = replace(Recipe(), max_steps=args.steps)
    model = tune(recipe, args.base or model_path("base"), args.build)
    if not args.no_ship:
        for name, value in ship(model, recipe, args.build)[0].items():
            print(f"{name:32s} {value:.3f}")


if __name__ == "__main__":
    main()
