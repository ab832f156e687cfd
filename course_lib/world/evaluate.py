"""The held-out evaluation of a model of the micro-world: ``python -m course_lib.world.evaluate``.

Every item is new to the model (``heldout``): its words, people, problems, names or labels never
stood in such a question in the corpus. A prompt is completed greedily up to the end of the line;
the answer must match to the letter. No gradient step is taken.
"""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from course_lib.completion import complete, context_size, encode, fit, token_counter
from course_lib.measuring import grade, parse_answer, wilson
from course_lib.ops import token_logprobs
from course_lib.rollout import response_logps
from course_lib.runtime import evaluation_mode, model_device
from course_lib.world import facts, lists, tasks
from course_lib.world.arithmetic import TRIGGER, draw_problem
from course_lib.world.documents import (
    draw_fact_question,
    draw_passage_people,
    draw_word_problem,
    layout_passage,
    reasoned,
)
from course_lib.world.heldout import HELD_OUT_COMPOSITIONS

MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Item:
    """One prompt and its right answer.

    ``examples`` are solved problems to put before the ``query``; as many of them as leave room for
    the completion are used, from the last one on.
    """

    query: str
    answer: str
    examples: tuple[str, ...] = ()
    max_new_tokens: int = 12


# --- items --------------------------------------------------------------------------------------


def _list_item(shots: list[tuple[str, str]], query: tuple[str, str]) -> Item:
    lines = tuple(f"{x} -> {y}\n" for x, y in shots)
    return Item(f"{query[0]} ->", query[1], lines, 20)


def unseen_labels(rng: random.Random, shots: int, new_word: bool = False) -> Item:
    """Two categories under labels that no list of the corpus has; both occur from two shots on.

    Args:
        new_word: ask for a word, too, that no label map of the corpus has: its category must be
            known from elsewhere.
    """
    labels = lists.LabelMap(rng, held_out=True, classes=2)
    kinds = rng.sample(list(labels.labels), 2)
    pairs: dict[str, str] = {}
    while len(pairs) < shots:
        word, label = labels.draw(rng, kinds[len(pairs) % 2])
        pairs.setdefault(word, label)
    examples = list(pairs.items())
    rng.shuffle(examples)
    while (query := labels.draw(rng, held_out=new_word)) in examples:
        pass
    return _list_item(examples, query)


def named_task(rng: random.Random, names: tuple[str, ...], shots: int) -> Item:
    """A named task as a list: the examples from the training items, the query held out."""
    task = tasks.TASKS[rng.choice(names)]
    query = task.draw(rng, True)
    return _list_item(_examples(lambda: task.draw(rng, False), shots), query)


def _examples(draw: Callable[[], tuple[str, str]], shots: int) -> list[tuple[str, str]]:
    """Different pairs where the task has enough of them."""
    pairs: dict[str, str] = {}
    for _ in range(20 * shots):
        if len(pairs) < shots:
            pairs.setdefault(*draw())
    return list(pairs.items())


def composition(rng: random.Random, shots: int) -> Item:
    """A (select, transform) pair that no list of the corpus shows."""
    select, transform = rng.choice(sorted(HELD_OUT_COMPOSITIONS))
    draw = partial(tasks.draw_composition, rng, select, transform)
    return _list_item(_examples(lambda: draw(False), shots), draw(True))


def plus_k(rng: random.Random, shots: int) -> Item:
    """Add a k that no list of the corpus adds."""
    k = rng.choice(lists.UNSEEN_K)
    numbers = rng.sample(range(10, 61), shots + 1)
    pairs = [(str(n), str(n + k)) for n in numbers]
    return _list_item(pairs[:-1], pairs[-1])


def _question(question: str, steps: str, answer: object, manner: str) -> str:
    return f"Q: {question}\nA: {reasoned(steps, str(answer), manner)}\n"


def _reasoning_item(draw: Callable[[bool], tuple[str, str, object]], manner: str,
                    shots: int = 3) -> Item:  # fmt: skip
    """Few-shot with direct answers or with steps, or zero-shot with the trigger."""
    question, _, answer = draw(True)
    if manner == "trigger":
        return Item(f"Q: {question}\nA: {TRIGGER}", str(answer), (), MAX_NEW_TOKENS)
    examples = tuple(_question(*draw(False), manner) for _ in range(shots))
    room = 12 if manner == "direct" else MAX_NEW_TOKENS
    return Item(f"Q: {question}\nA:", str(answer), examples, room)


def expression(rng: random.Random, operands: int, manner: str) -> Item:
    def draw(held_out: bool) -> tuple[str, str, object]:
        problem = draw_problem(rng, operands, held_out)
        return problem.expression, problem.steps, problem.answer

    return _reasoning_item(draw, manner)


def word_problem(rng: random.Random, operands: int, manner: str) -> Item:
    def draw(held_out: bool) -> tuple[str, str, object]:
        text, problem = draw_word_problem(rng, operands, held_out)
        return text, problem.steps, problem.answer

    return _reasoning_item(draw, manner)


def two_hop(rng: random.Random, manner: str) -> Item:
    """Two memorised facts about a person who is never the subject of such a question."""
    return _reasoning_item(lambda held_out: facts.draw_two_hop(rng, held_out), manner)


def fact(rng: random.Random) -> Item:
    """A fact that the corpus states but never asks."""
    question, answer = draw_fact_question(rng, held_out=True)
    return Item(f"Q: {question}\nA:", answer)


def newcomer_fact(rng: random.Random) -> Item:
    """A fact about somebody whom no document names: a guess at best."""
    person = rng.choice(facts.newcomers())
    relation = rng.choice(facts.ATTRIBUTES)
    return Item(f"Q: {facts.ask(relation, person.name, rng)}\nA:", person.facts[relation])


def passage(rng: random.Random, count: int) -> Item:
    """Two facts about each of ``count`` strangers, in any order, and a question about one."""
    people = draw_passage_people(rng, count, held_out=True)
    relations = rng.sample(list(facts.RELATIONS), 2)
    stated = [(p, r) for p in people for r in relations]
    rng.shuffle(stated)
    text = layout_passage([facts.state(r, p.name, p.facts[r], rng) for p, r in stated], rng)
    person, relation = rng.choice(stated)
    question = facts.ask(relation, person.name, rng)
    return Item(f"{text}\nQ: {question}\nA:", person.facts[relation])


def instruction(rng: random.Random) -> Item:
    """A task asked in the chat format, which the corpus does not contain."""
    task = rng.choice(list(tasks.TASKS.values()))
    x, y = task.draw(rng, True)
    return Item(f"<|user|> {rng.choice(task.instructions)}: {x}<|assistant|>", y, (), 20)


LIST_TASKS = tuple(n for n, t in tasks.TASKS.items() if t.cluster == "lists")
OTHER_COMPOSITIONS = tuple(n for n, t in tasks.TASKS.items() if t.cluster == "compositions")

FIGURES: dict[str, Callable[[random.Random], Item]] = {
    **{f"unseen_labels_{k}shot": partial(unseen_labels, shots=k) for k in (0, 1, 2, 4, 8)},
    "unseen_labels_new_words_8shot": partial(unseen_labels, shots=8, new_word=True),
    **{f"words_{k}shot": partial(named_task, names=tasks.WORD_TASKS, shots=k)
       for k in (0, 1, 2, 4, 8)},
    **{f"expr{n}_{m}": partial(expression, operands=n, manner=m)
       for n in (2, 3, 4, 5) for m in ("direct", "steps", "trigger")},
    **{f"wordproblem{n}_{m}": partial(word_problem, operands=n, manner=m)
       for n in (3, 5) for m in ("direct", "steps")},
    **{f"twohop_{m}": partial(two_hop, manner=m) for m in ("direct", "steps", "trigger")},
    "facts": fact,
    "newcomers": newcomer_fact,
    **{f"passage{n}": partial(passage, count=n) for n in (1, 2, 3)},
    "lists_8shot": partial(named_task, names=LIST_TASKS, shots=8),
    "compositions_8shot": partial(named_task, names=OTHER_COMPOSITIONS, shots=8),
    "unseen_compositions_8shot": partial(composition, shots=8),
    "unseen_k_8shot": partial(plus_k, shots=8),
    "instructions": instruction,
}  # fmt: skip
"""Name of a figure -> how to draw one of its items."""


# --- grading ------------------------------------------------------------------------------------


def assemble(item: Item, tokenizer, block_size: float) -> str:
    """The prompt: the last examples that fit beside the query and the completion.

    Raises:
        ValueError: not even the query alone fits.
    """

    def render(examples) -> str:
        return "".join(examples) + item.query

    room = block_size - item.max_new_tokens
    return render(fit(item.examples, render, room, token_counter(tokenizer)))


def accuracy(model, tokenizer, items: list[Item]) -> float:
    """Share of the items whose parsed completion equals the answer."""
    block_size = context_size(model)
    prompts = [assemble(item, tokenizer, block_size) for item in items]
    completions = complete(model, tokenizer, prompts, max(i.max_new_tokens for i in items))
    return grade([parse_answer(c) for c in completions], [i.answer for i in items]).accuracy


def answer_nats(model, tokenizer, items: list[Item], batch_size: int = 100) -> float:
    """Mean of -log p(right answer | prompt), summed over the answer's tokens, in nats.

    It moves smoothly where the accuracy of a whole answer jumps (Schaeffer et al., 2023).
    """
    block_size = context_size(model)
    prompts = encode(tokenizer, [assemble(item, tokenizer, block_size) for item in items])
    answers = [tokenizer(f" {i.answer}\n", add_special_tokens=False)["input_ids"] for i in items]
    total = 0.0
    for i in range(0, len(items), batch_size):
        some = slice(i, i + batch_size)
        total -= response_logps(model, prompts[some], answers[some]).sum().item()
    return total / len(items)


@torch.no_grad()
def losses_by_kind(model, tokenizer, seed: int = 0, documents_per_kind: int = 40) -> dict:
    """Mean next-token loss (nats a token) on validation documents of each kind."""
    from course_lib.world.corpus import VALIDATION_SEED
    from course_lib.world.documents import KINDS

    block_size, device, result = context_size(model), model_device(model), {}
    for kind, draw in KINDS.items():
        rng = random.Random(f"{VALIDATION_SEED + seed} {kind}")
        texts = [draw(rng) + "<|end|>" for _ in range(documents_per_kind)]
        batch = tokenizer(texts, padding=True, padding_side="right", truncation=True,
                          max_length=block_size, return_tensors="pt").to(device)  # fmt: skip
        mask = batch["attention_mask"][:, 1:].bool()
        with evaluation_mode(model):
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logprobs = token_logprobs(logits, batch["input_ids"])
        result[kind] = -logprobs[mask].mean().item()
    return result


@torch.no_grad()
def validation_loss(model, tokenizer_path, seed: int = 0, rows: int = 128) -> float:
    """Mean next-token loss (nats a token) on packed rows of a validation shard."""
    from course_lib.world.corpus import VALIDATION_SEED, packed_rows

    block = next(packed_rows(VALIDATION_SEED + seed, tokenizer_path, context_size(model), 1))
    total = []
    for part in torch.from_numpy(block[:rows].astype("int64")).split(32):
        part = part.to(model_device(model))
        with evaluation_mode(model):
            total.append(-token_logprobs(model(part).logits, part).mean())
    return torch.stack(total).mean().item()


def draw_items(name: str, seed: int, items: int) -> list[Item]:
    """The items of a figure, always the same for the same seed."""
    rng = random.Random(f"evaluation {seed} {name}")
    return [FIGURES[name](rng) for _ in range(items)]


def evaluate(
    model, tokenizer, *, seed: int = 0, items: int = 200, tokenizer_path=None,
    figures: list[str] | None = None, progress: bool = True,
) -> dict[str, float]:  # fmt: skip
    """The evaluation table: accuracies in 0..1, and ``loss`` if ``tokenizer_path`` is given.

    Args:
        model, tokenizer: anything that follows the calling convention of transformers.
        seed: draws the items.
        items: how many a figure.
        figures: names out of ``FIGURES``; all of them by default.

    Raises:
        ValueError: an unknown figure.
    """
    from tqdm.auto import tqdm

    names = list(FIGURES) if figures is None else figures
    if unknown := [n for n in names if n not in FIGURES]:
        raise ValueError(f"Unknown figures {unknown}: choose from {sorted(FIGURES)}.")
    table = {}
    for name in tqdm(names, disable=not progress, desc="evaluation"):
        table[name] = accuracy(model, tokenizer, draw_items(name, seed, items))
    if tokenizer_path is not None:
        table["loss"] = validation_loss(model, tokenizer_path, seed)
    return table


def confidence(share: float, items: int) -> float:
    """Half the width of the 95 % interval of a share (``measuring.wilson``)."""
    return wilson(share, items).half_width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="folder of a model (default: the shipped base model)")
    parser.add_argument("--seed", type=int, default=0, help="draws the items (default 0)")
    parser.add_argument("--items", type=int, default=200, help="items a figure (default 200)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    if args.items < 1:
        parser.error(f"--items must be at least 1, got {args.items}")

    from course_lib.shipped import load_model_from, model_path

    folder = args.model or model_path("base")
    model, tokenizer = load_model_from(folder)
    table = evaluate(model, tokenizer, seed=args.seed, items=args.items,
                     tokenizer_path=f"{folder}/tokenizer.json", progress=not args.json)  # fmt: skip
    if args.json:
        print(json.dumps({k: round(v, 4) for k, v in table.items()}, indent=2))
    else:
        for name, value in table.items():
            interval = "" if name == "loss" else wilson(value, args.items)
            spread = interval and f"  95 %: {interval.low:.3f} to {interval.high:.3f}"
            print(f"{name:28s} {value:.3f}{spread}")


if __name__ == "__main__":
    main()
