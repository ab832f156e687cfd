"""The preference-tuned model's recipe: the instruct model through the three steps of RLHF.

Demonstrations among the tasks that the model already does, so that it keeps them; a reward model
from rankings of what it then writes; PPO against that reward, on the guests' questions alone. Run
by ``make model`` after the instruct model. Each step goes on where it was killed.
Simplified away: a mix of pretraining text into PPO (PPO-ptx), more than one round of labels.
"""

import argparse
import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from course_lib import rlhf
from course_lib.files import write_json, write_text
from course_lib.models.heads import WithScalarHead
from course_lib.optim import muon_adamw
from course_lib.ppo import ppo_loss
from course_lib.ppo_rollouts import ActorCritic, PPORollouts
from course_lib.recipes.base import SHIPPED, figure_rows, keep_to_the_recipe, ship_files
from course_lib.recipes.instruct import instruction_figures, task_sources
from course_lib.reward import ranking_loss
from course_lib.rows import batches, document_row, mix
from course_lib.sft import sft_loss
from course_lib.shipped import load_model_from, model_path, write_checksums
from course_lib.training import train
from course_lib.world.corpus import documents
from course_lib.world.evaluate import evaluate
from course_lib.world.preferences import panel, questions

BUILD = Path("build/preference")
SEED_OF_REPLAY = 700
"""Of the first corpus that replay is read from: no earlier stage read it."""


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, apart from the instruct model and the code of the data."""

    seed: int = 100
    demonstrations: float = 0.3  # shares of the rows of step 1; the rest are tasks
    replay: float = 0.2
    sft_steps: int = 400
    batch_size: int = 32
    muon_lr: float = 3e-3
    adamw_lr: float = 7e-4
    rankings: int = 1200  # of four replies each
    reward_steps: int = 300
    reward_lr: float = 2e-3
    updates: int = 30  # rollouts of 64 replies
    ppo_lr: float = 3e-4
    kl_coef: float = 0.2


@dataclass
class Trained:
    """The models of the three steps."""

    policy: nn.Module  # after the demonstrations: the start and the reference of PPO
    reward_model: nn.Module
    preference: nn.Module
    history: list[dict]  # of PPO's rollouts


def step_1(recipe: Recipe, model: nn.Module, tokenizer, build: Path) -> nn.Module:
    """The instruct model on demonstrations, tasks and documents; it is trained in place."""
    block_size = model.config.block_size
    tasks, rates = task_sources(tokenizer, recipe.seed)
    share = 1 - recipe.demonstrations - recipe.replay
    replay = (document_row(tokenizer, document.text, block_size)
              for document in documents(SEED_OF_REPLAY + recipe.seed))  # fmt: skip
    rows = mix([*tasks, rlhf.demonstration_rows(tokenizer, recipe.seed), replay],
               [*(share * rate for rate in rates), recipe.demonstrations, recipe.replay],
               torch.Generator().manual_seed(recipe.seed))  # fmt: skip
    stream = batches(rows, recipe.batch_size, tokenizer.pad_token_id, block_size=block_size,
                     packed=True)  # fmt: skip
    train(
        model, stream, sft_loss, max_steps=recipe.sft_steps,
        optimizer=muon_adamw(model, muon_lr=recipe.muon_lr, adamw_lr=recipe.adamw_lr),
        warmup_steps=30, checkpoint_dir=build / "demonstrations", checkpoint_every=100,
    )  # fmt: skip
    return model.eval()


def step_2(recipe: Recipe, policy: nn.Module, tokenizer, build: Path) -> nn.Module:
    """The reward model from rankings of the policy's replies."""
    rankings = rlhf.collect_rankings(
        policy, tokenizer, panel(recipe.seed), recipe.rankings, recipe.seed
    )
    model = WithScalarHead(copy.deepcopy(policy))
    stream = rlhf.RankingBatches(rankings, tokenizer, 4, recipe.seed)
    train(model, stream, ranking_loss, max_steps=recipe.reward_steps, lr=recipe.reward_lr,
          warmup_steps=5, checkpoint_dir=build / "reward", checkpoint_every=100)  # fmt: skip
    return model.eval()


def step_3(
    recipe: Recipe, policy: nn.Module, reward_model: nn.Module, tokenizer, build: Path
) -> tuple[nn.Module, list[dict]]:
    """The policy after PPO against the reward model, and the history of its rollouts."""
    settings = rlhf.ppo_settings(kl_coef=recipe.kl_coef)
    model = ActorCritic(copy.deepcopy(policy), copy.deepcopy(reward_model))
    asked = (rlhf.prompt_ids(tokenizer, question) for question in questions(recipe.seed))
    stream = PPORollouts(
        model, policy, asked, rlhf.score_with(reward_model, tokenizer), settings, batch_size=64,
        eos_token_id=tokenizer.eos_token_id,
        generator=torch.Generator().manual_seed(recipe.seed),
    )  # fmt: skip
    steps = recipe.updates * settings.epochs * 64 // settings.minibatch_size
    train(model, stream, ppo_loss(settings), max_steps=steps, lr=recipe.ppo_lr, warmup_steps=20,
          checkpoint_dir=build / "ppo", checkpoint_every=40)  # fmt: skip
    return model.policy.eval(), stream.history


def tune(recipe: Recipe, instruct: Path, build: Path = BUILD) -> Trained:
    """The three steps, from the model in the folder ``instruct``; resumes by itself.

    Raises:
        ValueError: ``build`` holds a run of another recipe.
    """
    keep_to_the_recipe(asdict(recipe), build)
    model, tokenizer = load_model_from(instruct)
    policy = step_1(recipe, model, tokenizer, build)
    reward_model = step_2(recipe, policy, tokenizer, build)
    preference, history = step_3(recipe, policy, reward_model, tokenizer, build)
    return Trained(policy, reward_model, preference, history)


# --- evaluation and shipping --------------------------------------------------------------------


def guest_figures(
    policy: nn.Module, tokenizer, seed: int = 0, count: int = 400
) -> dict[str, float]:
    """What guests get who ask about held-out places: means of ``rlhf.figures``, named ``guests_…``.

    Args:
        seed: draws questions and replies.
        count: questions, one sampled reply each.
    """
    written = rlhf.ask_held_out(policy, tokenizer, seed, count)
    return {f"guests_{name}": value for name, value in rlhf.figures(written).items()}


def all_figures(model: nn.Module, tokenizer, seed: int) -> dict[str, float]:
    """The guests' figures, and those of the cards of the instruct and of the base model."""
    return (guest_figures(model, tokenizer, seed) | instruction_figures(model, tokenizer, seed)
            | evaluate(model, tokenizer, seed=seed,
                       tokenizer_path=model_path("base") / "tokenizer.json"))  # fmt: skip


def steps_of(trained: Trained, tokenizer, seed: int = 0) -> dict[str, dict[str, float]]:
    """``rlhf.figures`` after step 1, of best of 16 from there, and after step 3, each with the
    reward model's score; ``kl`` of the last in nats a reply."""
    score, pad = rlhf.score_replies, tokenizer.pad_token_id
    many = rlhf.ask_held_out(trained.policy, tokenizer, seed, 200, each=16)
    chosen = rlhf.best_of_n(many, score(trained.reward_model, tokenizer, many), 16)
    last = rlhf.ask_held_out(trained.preference, tokenizer, seed, 400)
    table = {}
    for name, written in (("demonstrations", many), ("best of 16", chosen), ("ppo", last)):
        scores = score(trained.reward_model, tokenizer, written)
        table[name] = {"score": sum(scores) / len(scores), **rlhf.figures(written)}
    table["ppo"]["kl"] = rlhf.kl_to(trained.preference, trained.policy, last, pad)
    return table


CARD = """---
license: mit
language: en
library_name: transformers
---

# The preference-tuned model of the micro-world

The instruct model after the three steps of RLHF (Ouyang et al., 2022): demonstrations, a reward
model learnt from rankings, PPO against it. Asked what is good at a place, it names things that the
place has, claims no experience and insults nobody; other tasks it does as before, or somewhat
worse: see the figures.

| | |
| --- | --- |
| started from | `instruct`, all weights trained |
| preference task | `course_lib/world/preferences.py`, seed {seed}; labellers with noise 0.5 and \
weights of their own |
| step 1 | {sft_steps} steps of {batch_size} rows: {demonstrations:.0%} demonstrations, \
{replay:.0%} documents, the rest tasks; Muon (lr {muon_lr}) and AdamW (lr {adamw_lr}) |
| step 2 | {rankings:,} rankings of 4 replies, {reward_steps} steps of 4 rankings, \
AdamW (lr {reward_lr}) |
| step 3 | {updates} rollouts of 64 replies, 4 epochs each, KL weight {kl_coef}, \
AdamW (lr {ppo_lr}); the critic begins as the reward model |
| sampled at | temperature {temperature} |
| precision | fp32 |
| weights | fp16, {megabytes:.1f} MB |
| remake it | `make model` (two cores, no GPU) |

## The steps

Replies to questions about held-out places. Truth: by a program, helpful + honest + harmless +
whether it can be read. Score: the reward model's. KL to the model after step 1: {kl:.1f} nats a
reply.

| | truth | score | reasons | claims | insults | broken | tokens |
| --- | --- | --- | --- | --- | --- | --- | --- |
{steps}

## Held-out evaluation

Evaluation seeds {seeds}. `guests_…`: means over 400 sampled replies, of the truth and its parts and
of sentences a reply. All others as on the instruct model's card, in greedy answers.

| figure | mean | least | most |
| --- | --- | --- | --- |
{figures}
"""
COLUMNS = ("truth", "score", "reasons", "claims", "insults", "broken", "tokens")


def write_card(recipe: Recipe, steps: dict, tables: list[dict], folder: Path) -> None:
    """The model card: the recipe, what each step gave, and the evaluation over its seeds."""
    rows = [f"| {name} | " + " | ".join(f"{row[c]:.2f}" for c in COLUMNS) + " |"
            for name, row in steps.items()]  # fmt: skip
    text = CARD.format(
        **asdict(recipe), temperature=rlhf.TEMPERATURE, kl=steps["ppo"]["kl"],
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6, steps="\n".join(rows),
        seeds=", ".join(map(str, range(len(tables)))), figures=figure_rows(tables),
    )  # fmt: skip
    write_text(folder / "README.md", text)


def ship(trained: Trained, recipe: Recipe) -> list[dict]:
    """Evaluate, then write the model, its card, its history and the checksums."""
    base, folder = model_path("base"), SHIPPED / "preference"
    _, tokenizer = load_model_from(base)
    steps = steps_of(trained, tokenizer)
    ship_files(trained.preference, folder, base)
    model, _ = load_model_from(folder)  # the weights as they are shipped
    tables = [all_figures(model, tokenizer, seed) for seed in (0, 1, 2)]
    rounded = [{name: round(value, 4) for name, value in table.items()} for table in tables]
    write_json(folder / "evaluation.json", {"items": 200, "seeds": rounded})
    write_json(folder / "history.json", {"steps": _rounded(steps.values(), steps),
                                         "rollouts": _rounded(trained.history)})  # fmt: skip
    write_card(recipe, steps, tables, folder)
    write_checksums()
    return tables


def _rounded(rows, names=None):
    rows = [{key: round(value, 4) for key, value in row.items()} for row in rows]
    return rows if names is None else dict(zip(names, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--updates", type=int, default=Recipe.updates, help="rollouts of PPO")
    parser.add_argument("--instruct", type=Path, help="the instruct model (default: shipped)")
    parser.add_argument("--build", type=Path, default=BUILD, help="folder of the run")
    parser.add_argument("--no-ship", action="store_true", help="train only")
    args = parser.parse_args()
    recipe = replace(Recipe(), updates=args.updates)
    trained = tune(recipe, args.instruct or model_path("instruct"), args.build)
    if not args.no_ship:
        for name, value in ship(trained, recipe)[0].items():
            print(f"{name:32s} {value:.3f}")


if __name__ == "__main__":
    main()
