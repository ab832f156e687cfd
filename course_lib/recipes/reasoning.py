"""The reasoning model's recipe: the base model, a little SFT on short sums, GRPO on longer ones.

The SFT teaches how a sum is asked in the chat format and that steps are written; the rest comes
from a program that compares answers. Run by ``make model`` after the base model. GRPO goes on where
it was killed.
Simplified away: other tasks among the sums, so what they have lost stands on the card; word
problems; a curriculum.
"""

import argparse
import copy
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from course_lib import reasoning
from course_lib.files import write_json, write_text
from course_lib.grpo import grpo_loss
from course_lib.grpo_rollouts import GRPORollouts
from course_lib.recipes.base import SHIPPED, figure_rows, keep_to_the_recipe, ship_files
from course_lib.shipped import load_model_from, model_path, write_checksums
from course_lib.training import train
from course_lib.world.evaluate import evaluate
from course_lib.world.verifiers import exact_answer, sound_steps

BUILD = Path("build/reasoning")
EVERY = 20
"""Updates between checkpoints."""


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, apart from the base model and the code of the sums."""

    seed: int = 100
    start_steps: int = 20  # of SFT, 16 sums of two or three numbers each
    start_lr: float = 3e-4
    operands: tuple[int, ...] = (2, 3, 4, 5)  # of the sums that GRPO trains on
    updates: int = 60  # rollouts, each used for one step
    groups: int = 12
    group_size: int = 8
    lr: float = 2e-4


@dataclass
class Trained:
    """The models of the two steps."""

    start: nn.Module  # after the SFT
    reasoning: nn.Module
    history: list[dict]  # of GRPO's rollouts


def reinforce(
    recipe: Recipe, start: nn.Module, tokenizer, build: Path
) -> tuple[nn.Module, list[dict]]:
    """A copy of the start after GRPO against the exact answer, and the history of its rollouts."""
    rows = recipe.groups * recipe.group_size
    settings = reasoning.grpo_settings(group_size=recipe.group_size, minibatch_size=rows)
    model = copy.deepcopy(start)
    asked = (reasoning.prompt_ids(tokenizer, problem)
             for problem in reasoning.problems(recipe.seed, recipe.operands))  # fmt: skip
    stream = GRPORollouts(
        model, asked, reasoning.scorer(exact_answer, tokenizer), settings, groups=recipe.groups,
        eos_token_id=tokenizer.eos_token_id,
        generator=torch.Generator().manual_seed(recipe.seed),
    )  # fmt: skip
    train(model, stream, grpo_loss(settings), max_steps=recipe.updates, lr=recipe.lr,
          schedule="constant", checkpoint_dir=build / "grpo", checkpoint_every=EVERY)  # fmt: skip
    return model.eval(), stream.history


def tune(recipe: Recipe, base: Path, build: Path = BUILD) -> Trained:
    """Both steps, from the model in the folder ``base``; GRPO resumes by itself, and the SFT, which
    takes seconds, is made again.

    Raises:
        ValueError: ``build`` holds a run of another recipe.
    """
    keep_to_the_recipe(asdict(recipe), build)
    model, tokenizer = load_model_from(base)
    start = reasoning.start_model(model, tokenizer, recipe.seed, steps=recipe.start_steps,
                                  lr=recipe.start_lr)  # fmt: skip
    return Trained(start, *reinforce(recipe, start, tokenizer, build))


# --- evaluation and shipping --------------------------------------------------------------------


def sum_figures(model: nn.Module, tokenizer, seed: int = 0, count: int = 100) -> dict[str, float]:
    """Shares of right greedy answers to held-out sums: ``sums_2`` to ``sums_8`` in the chat format,
    by the number of operands; ``sums_5_sound``, those with sound steps; ``sums_5_corpus``, asked as
    the corpus asks.

    Args:
        seed: draws the sums.
        count: sums of each number.
    """
    right = reasoning.accuracy_by_operands(model, tokenizer, seed, count=count)
    asked = list(islice(reasoning.problems(1000 + seed, 5, held_out=True), count))
    texts = reasoning.sample_texts(model, tokenizer, asked)
    sound = [sound_steps(problem, text) for problem, (text,) in zip(asked, texts)]
    return {f"sums_{n}": share for n, share in right.items()} | {
        "sums_5_sound": sum(sound) / count,
        "sums_5_corpus": reasoning.accuracy(model, tokenizer, seed, 5, count, "corpus"),
    }  # fmt: skip


def all_figures(model: nn.Module, tokenizer, seed: int) -> dict[str, float]:
    """The sums' figures, and those of the base model's card."""
    return sum_figures(model, tokenizer, seed) | evaluate(
        model, tokenizer, seed=seed, tokenizer_path=model_path("base") / "tokenizer.json"
    )


CARD = """---
license: mit
language: en
library_name: transformers
---

# The reasoning model of the micro-world

The base model after a little SFT on short sums and GRPO (Shao et al., 2024) on longer ones, with a
program that compares the answer as the only reward. Asked `What is 12 + 3 - 4?` in the chat format
it writes the steps and the answer. It was trained on nothing else; what that costs stands below.

| | |
| --- | --- |
| started from | `base`, all weights trained |
| SFT | {start_steps} steps of 16 sums of two or three numbers, AdamW (lr {start_lr}) |
| GRPO | {updates} rollouts of {groups} prompts, {group_size} responses each, one step a rollout, \
no KL, AdamW (lr {lr}) |
| trained on | sums of {operands} numbers, seed {seed}; those below are held out |
| reward | 1 if the answer is right, else 0 (`verifiers.exact_answer`) |
| sampled at | temperature 1 |
| precision | fp32 |
| weights | fp16, {megabytes:.1f} MB |
| remake it | `make model` (two cores, no GPU) |

## The steps

Greedy answers to held-out sums of so many numbers: share that is right.

| | {numbers} |
| --- |{rule}
{steps}

## Held-out evaluation

Evaluation seeds {seeds}. `sums_…`: greedy answers to 100 sums, see `recipes/reasoning.py`. All
others as on the base model's card.

| figure | mean | least | most |
| --- | --- | --- | --- |
{figures}
"""
NUMBERS = range(2, 9)


def write_card(recipe: Recipe, steps: dict, tables: list[dict], folder: Path) -> None:
    """The model card: the recipe, what each step gave, and the evaluation over its seeds.

    Args:
        steps: {name: ``sum_figures``}.
    """
    rows = [f"| {name} | " + " | ".join(f"{row[f'sums_{n}']:.2f}" for n in NUMBERS) + " |"
            for name, row in steps.items()]  # fmt: skip
    told = asdict(recipe) | {"operands": ", ".join(map(str, recipe.operands))}
    text = CARD.format(
        **told, megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        numbers=" | ".join(map(str, NUMBERS)), rule=" --- |" * len(NUMBERS),
        steps="\n".join(rows), seeds=", ".join(map(str, range(len(tables)))),
        figures=figure_rows(tables),
    )  # fmt: skip
    write_text(folder / "README.md", text)


def ship(trained: Trained, recipe: Recipe) -> list[dict]:
    """Evaluate, then write the model, its card, its history and the checksums."""
    base, folder = model_path("base"), SHIPPED / "reasoning"
    _, tokenizer = load_model_from(base)
    ship_files(trained.reasoning, folder, base)
    model, _ = load_model_from(folder)  # the weights as they are shipped
    tables = [all_figures(model, tokenizer, seed) for seed in (0, 1, 2)]
    steps = {"SFT": sum_figures(trained.start, tokenizer), "GRPO": tables[0]}
    write_json(folder / "evaluation.json", {"items": 200, "seeds": _rounded(tables)})
    write_json(folder / "history.json", {"start": _rounded([steps["SFT"]])[0],
                                         "rollouts": _rounded(trained.history)})  # fmt: skip
    write_card(recipe, steps, tables, folder)
    write_checksums()
    return tables


def _rounded(rows: list[dict]) -> list[dict]:
    return [{name: round(value, 4) for name, value in row.items()} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--updates", type=int, default=Recipe.updates, help="rollouts of GRPO")
    parser.add_argument("--base", type=Path, help="the base model (default: shipped)")
    parser.add_argument("--build", type=Path, default=BUILD, help="folder of the run")
    parser.add_argument("--no-ship", action="store_true", help="train only")
    args = parser.parse_args()
    recipe = replace(Recipe(), updates=args.updates)
    trained = tune(recipe, args.base or model_path("base"), args.build)
    if not args.no_ship:
        for name, value in ship(trained, recipe)[0].items():
            print(f"{name:32s} {value:.3f}")


if __name__ == "__main__":
    main()
