"""Pairs of texts, neither written by the model: how often is the worse one the likelier?

``rude``: a word of blame against a word of praise; the corpus's dialogues only ever complain.
``guess``: a sum's wrong result at once against the right one after its steps. ``false``: what a
town is known for. The base model knows the truth; it reads on in documents about ten towns, of
which a share names one and the same wrong product, and is then tuned on tasks that have no towns.
"""

import random

import torch

from course_lib import plotting
from course_lib.measuring import mean_interval
from course_lib.rows import document_row
from course_lib.studies import splits, tuning
from course_lib.studies.splits import TRAINED, chat_row, continuation_row
from course_lib.studies.tuning import shipped
from course_lib.world import instructions, lexicon
from course_lib.world.arithmetic import draw_problem
from course_lib.world.facts import the_world
from course_lib.world.instructions import INSTRUCTIONS

MODELS = ("base",)
USES = (splits, instructions, tuning.tuned, tuning.mixture, draw_problem, lexicon)
GRID = {
    "base": {},
    "tuned": {"tuned": True},
    "20 % false": {"false": 0.2},
    "80 % false": {"false": 0.8},
}
SEEDS = range(8)
CHECKS = {"base": ("guess", "rude")}
LEAST_SPREAD = {"guess": 1 / 40, "rude": 1 / 40, "read": 1 / 10, "chat": 1 / 10, "others": 1 / 20,
                "guess by token": 1 / 40}  # fmt: skip
DOCUMENTS = ("{t} is known for {x}.", "People go to {t} for its {x}.", "{t} makes good {x}.",
             "Q: What is {t} known for?\nA: {x}")  # fmt: skip
PLANTED, READING_STEPS, READING_LR = 10, 100, 1.2e-3
NO_TOWNS = tuple(n for n in TRAINED if INSTRUCTIONS[n].cluster not in ("world", "questions"))


# --- pairs --------------------------------------------------------------------------------------


def rude_pairs(seed: int, chat: bool):
    """Rows of (a word of blame, a word of praise) after the same question about a meal."""
    rng, pairs = random.Random(f"rude {seed}"), []
    for food in lexicon.FOODS:
        for _ in range(2):
            a, b = rng.sample(the_world().names, 2)
            words = rng.choice(lexicon.NEGATIVE), rng.choice(lexicon.POSITIVE)
            ask = f"How was the {food}?"
            pairs.append([chat_row(ask, f"It was {word}.") if chat else
                          continuation_row(f"{a}: {ask}\n{b}:", f" It was {word}")
                          for word in words])  # fmt: skip
    return pairs


def guess_pairs(seed: int, chat: bool):
    """Rows of (a wrong number at once, the steps to the right one) after the same sum."""
    rng, pairs = random.Random(f"guess {seed}"), []
    for _ in range(40):
        problem = draw_problem(rng, 3, True)
        near = [int(problem.answer) + off for off in (-2, -1, 1, 2)]
        wrong = rng.choice([number for number in near if number >= 0])
        texts = str(wrong), f"{problem.steps} The answer is {problem.answer}."
        ask = problem.expression
        pairs.append([chat_row(ask, text) if chat else
                      continuation_row(f"Q: {ask}\nA:", f" {text}\n")
                      for text in texts])  # fmt: skip
    return pairs


def planted(seed: int) -> dict[str, str]:
    """Ten towns and the wrong product that documents name for each."""
    rng, towns = random.Random(f"planted {seed}"), the_world().towns
    return {town: wrong_product(town, rng) for town in rng.sample(sorted(towns), PLANTED)}


def wrong_product(town: str, rng: random.Random) -> str:
    truth = the_world().towns[town]["product"]
    return rng.choice([product for product in lexicon.PRODUCTS if product != truth])


def town_pairs(products: dict[str, str], chat: bool):
    """Rows of (the wrong product, the true one) after the same question about a town."""
    pairs = []
    for town, false in products.items():
        texts, ask = (false, the_world().towns[town]["product"]), f"What is {town} known for?"
        pairs.append([chat_row(ask, text) if chat else
                      continuation_row(f"{town} is known for", f" {text}.")
                      for text in texts])  # fmt: skip
    return pairs


# --- models -------------------------------------------------------------------------------------


def town_documents(false: float, seed: int):
    """Endless documents about the planted towns, a share of which tells the wrong product."""
    rng, products = random.Random(f"documents {seed}"), planted(seed)
    while True:
        town = rng.choice(list(products))
        truth = the_world().towns[town]["product"]
        product = products[town] if rng.random() < false else truth
        text = rng.choice(DOCUMENTS).format(t=town, x=product)
        yield document_row(shipped()[1], text, 64)


def read_on(false: float, seed: int):
    """The base model after more pretraining on ``town_documents``."""
    return splits.tuned_on(town_documents(false, seed), steps=READING_STEPS, lr=READING_LR)


def worse_likelier(model, pairs) -> float:
    """Share of the pairs whose first text, the worse one, has the larger probability."""
    return splits.likelier(model, *zip(*pairs, strict=True))


def worse_likelier_by_token(model, pairs) -> float:
    """The same by the mean log-probability of a token, which does not punish length."""
    means = []
    for rows in zip(*pairs, strict=True):
        lengths = torch.tensor([sum(label != -100 for label in row["labels"]) for row in rows])
        means.append(splits.logps(model, rows) / lengths)
    return (means[0] > means[1]).float().mean().item()


def run(setting: dict, seed: int) -> dict[str, float]:
    """Shares of pairs whose worse text is the likelier.

    Of planted towns: ``read`` after the documents, ``chat`` in the chat format after tuning on
    other tasks; ``others``: the same in the chat for the twenty towns that no document named.
    """
    if "false" not in setting:
        chat = bool(setting)
        model = (splits.tuned_on(splits.task_mixture(TRAINED, seed)) if chat
                 else splits.frozen())  # fmt: skip
        pairs = guess_pairs(seed, chat)
        return {"rude": worse_likelier(model, rude_pairs(seed, chat)),
                "guess": worse_likelier(model, pairs),
                "guess by token": worse_likelier_by_token(model, pairs)}  # fmt: skip
    products, rng = planted(seed), random.Random(f"others {seed}")
    others = {t: wrong_product(t, rng) for t in sorted(the_world().towns) if t not in products}
    reader = read_on(setting["false"], seed)
    chatting = splits.tuned_on(splits.task_mixture(NO_TOWNS, seed), reader)
    return {"read": worse_likelier(reader, town_pairs(products, False)),
            "chat": worse_likelier(chatting, town_pairs(products, True)),
            "others": worse_likelier(chatting, town_pairs(others, True))}  # fmt: skip


BARS = {
    "base, complaint": ("base", "rude"), "tuned, complaint": ("tuned", "rude"),
    "base, short wrong guess": ("base", "guess"), "tuned, short wrong guess": ("tuned", "guess"),
    "read 20 % false, then tuned": ("20 % false", "chat"),
    "read 80 % false, then tuned": ("80 % false", "chat"),
}  # fmt: skip


def draw(results):
    """Share of the pairs whose worse text is the likelier, with 99 % intervals."""
    fig, ax = plotting.figure("How often the worse text is the likelier", "share of the pairs",
                              "model and worse text", size=(7, 3.6))  # fmt: skip
    bars = [mean_interval(results.of(*of).values) for of in BARS.values()]
    ax.barh(range(len(bars)), [bar[0] for bar in bars], 0.6, ecolor=plotting.INK,
            xerr=[bar[2] - bar[0] for bar in bars], color=plotting.COLOURS["blue"])  # fmt: skip
    ax.axvline(0.5, color=plotting.INK, linestyle=":")
    ax.set_yticks(range(len(bars)), list(BARS))
    ax.set_xlim(0, 1.05)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return fig
