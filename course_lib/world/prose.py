"""Stories, reviews and dialogues: running text whose next word is often open.

They give the base model something to say beyond answers. Reviews carry a sentiment and end, at
times, in a verdict; later chapters train a reward model on them.
"""

import random

from course_lib.world import lexicon
from course_lib.world.facts import RELATIONS, ask, the_world
from course_lib.world.heldout import is_held_out

# --- stories ------------------------------------------------------------------------------------

OPENINGS = (
    "One {weather} {time} {n} walked to the {place}.",
    "{n} woke up early and went to the {place}.",
    "It was a {weather} {time} in {town}.",
    "There was a {place} near {town}, and {n} liked it.",
    "Once {n} wanted to see the {place}.",
    "On {day} {n} took the {vehicle} to {town}.",
)
EVENTS = (
    "On the way {p} saw {animal}.",
    "There {p} met {m}, who was carrying {thing}.",
    "{P} found {thing} behind the {place}.",
    "The {animal0} looked {mood} and ran to the {place}.",
    "{P} sat down by the {place} and ate some {food}.",
    "Suddenly the wind took {thing} and carried it over the {place}.",
    "{m} called from the {place} and asked for help.",
    "{P} opened a {colour} {box} and looked inside.",
    "In the {box} there was {thing}.",
    "They played {sport} until it was dark.",
    "{m} told a long story about {animal}.",
    "{P} lost {thing} near the {place}, but {m} found it.",
    "The {animal0} slept under a tree.",
    "An old man showed them the way to the {place}.",
    "{P} wrote a letter to {m}.",
    "They drank {drink} and talked about {town}.",
    "{m} sang a song, and everybody laughed.",
    "{P} was {mood} because the {place} was closed.",
    "Then it began to rain, so they ran to the {place}.",
    "{m} played the {instrument} at the {place}.",
)
ENDINGS = (
    "In the evening {n} went home and was {mood}.",
    "{n} never forgot that {time}.",
    "After that {n} and {m} were good friends.",
    "So {n} gave the {thing0} back and walked home.",
    "At night {n} dreamed of the {place}.",
    "And {m} said: That was a good day.",
)
PLACES = (
    "bridge garden forest castle market river tower village station kitchen island mountain "
    "harbour meadow lake hill field shop school mill church"
).split()
BOXES = "basket box pocket bag drawer".split()
MOODS = "happy sad tired hungry afraid brave quiet glad angry calm".split()
WEATHERS = "cold warm rainy sunny windy foggy dark bright".split()
TIMES = "morning afternoon evening night day winter summer".split()
RESERVED_SENTENCES = (
    "A candle stood in the window.",
    "There was a ticket in the pocket of the coat.",
    "The engine of the train was loud.",
    "The children sat in a circle in the corner.",
    "{P} put the ticket into the basket.",
    "A statue stands in the corner of the market.",
    "{m} sat by the statue on the bridge.",
    "A blanket lay by the kitchen window.",
    "From the tower {p} could see the harbour and the island.",
    "The market was behind the station.",
    "A river runs from the mountain to the meadow.",
    "In the corner of the garden stood a candle.",
    "The castle is in the forest, not far from the village.",
    "{P} kept the ticket in a basket under the bridge.",
)
"""Sentences with the words of ``lexicon.RESERVED_LABELS``, which no list contains."""


def story(rng: random.Random) -> str:
    """A story of five to eleven sentences about two people of the world."""
    people = rng.sample(list(the_world().people.values()), 2)
    hero, friend = people
    things = lexicon.CATEGORIES["clothing"] + lexicon.CATEGORIES["tool"] + ("ring", "key", "coin")

    def fill(template: str) -> str:
        thing, animal = rng.choice(things), rng.choice(lexicon.CATEGORIES["animal"])
        return template.format(
            n=hero.name, p=hero.pronoun, P=hero.pronoun.capitalize(), m=friend.name,
            place=rng.choice(PLACES), town=rng.choice(lexicon.TOWNS),
            weather=rng.choice(WEATHERS), time=rng.choice(TIMES), day=rng.choice(lexicon.DAYS),
            vehicle=rng.choice(lexicon.CATEGORIES["vehicle"]),
            animal=lexicon.with_article(animal), animal0=animal,
            thing=lexicon.with_article(thing), thing0=thing,
            mood=rng.choice(MOODS), food=rng.choice(lexicon.FOODS),
            colour=rng.choice(lexicon.COLOURS), box=rng.choice(BOXES),
            sport=rng.choice(lexicon.CATEGORIES["sport"]),
            drink=rng.choice(lexicon.CATEGORIES["drink"]),
            instrument=rng.choice(lexicon.CATEGORIES["instrument"]),
        )  # fmt: skip

    body = rng.sample(EVENTS, rng.randint(2, 7)) + rng.sample(RESERVED_SENTENCES, rng.randint(1, 2))
    rng.shuffle(body)
    return " ".join(fill(t) for t in (rng.choice(OPENINGS), *body, rng.choice(ENDINGS)))


# --- reviews ------------------------------------------------------------------------------------

VENUES = ("inn", "cafe", "hotel", "shop", "bakery", "museum", "theatre", "pool", "cinema", "park")
ASPECTS = {
    "inn": ("soup", "room", "bed", "waiter", "pie", "stew"),
    "cafe": ("coffee", "cake", "waiter", "tea", "music", "toast"),
    "hotel": ("room", "bed", "breakfast", "view", "staff", "bath"),
    "shop": ("staff", "bread", "cheese", "price", "fruit", "wine"),
    "bakery": ("bread", "cake", "pie", "staff", "toast", "price"),
    "museum": ("show", "guide", "staff", "music", "view", "shop"),
    "theatre": ("show", "music", "singer", "seat", "story", "staff"),
    "pool": ("water", "staff", "bath", "price", "view", "music"),
    "cinema": ("film", "seat", "music", "story", "price", "staff"),
    "park": ("view", "music", "path", "lake", "guide", "cafe"),
}
REVIEW_SENTENCES = (
    "The {a} was {w}.", "I found the {a} {w}.", "We had {aw} {a}.", "What {aw} {a}!",
    "The {a} was really {w}.", "My friends said the {a} was {w}.", "The {a} is {w}, I think.",
)  # fmt: skip
CLOSINGS = {
    True: ("I will come back.", "We stayed all day.", "Go there!", "I can only praise it.",
           "A happy day.", "Thank you!"),
    False: ("I will never come back.", "We left early.", "Do not go there!",
            "I want my money back.", "A sad day.", "No, thank you!"),
}  # fmt: skip


def review_body(rng: random.Random, positive_share: float) -> tuple[str, float]:
    """A review in which each sentence praises with probability ``positive_share``.

    Returns:
        (text, share of its sentences that praise).
    """
    venue, town = rng.choice(VENUES), rng.choice(lexicon.TOWNS)
    opening = rng.choice(
        ("We went to the {v} in {t}.", "I was at the {v} in {t}.", "The {v} in {t}:",
         "Last {d} we saw the {v} in {t}.", "A visit to the {v} of {t}.")
    ).format(v=venue, t=town, d=rng.choice(lexicon.DAYS))  # fmt: skip
    sentences, praise = [opening], 0
    aspects = rng.sample(ASPECTS[venue], rng.randint(2, 5))
    for aspect in aspects:
        good = rng.random() < positive_share
        praise += good
        word = rng.choice(lexicon.POSITIVE if good else lexicon.NEGATIVE)
        sentences.append(
            rng.choice(REVIEW_SENTENCES).format(a=aspect, w=word, aw=lexicon.with_article(word))
        )
    share = praise / len(aspects)
    if rng.random() < 0.6:
        sentences.append(rng.choice(CLOSINGS[share > 0.5]))
    return " ".join(sentences), share


def review(rng: random.Random) -> str:
    """A review; half of them end in a verdict or a number of stars that fits the praise."""
    text, share = review_body(rng, rng.choice((0.02, 0.1, 0.5, 0.9, 0.98)))
    verdict = "positive" if share > 0.5 else "negative"
    ending = rng.random()
    if ending < 0.25:
        text += f"\nVerdict: {verdict}"
    elif ending < 0.4:
        text += f"\nStars: {1 + round(4 * share)}"
    elif ending < 0.5:
        text += f"\nSentiment: {verdict}"
    return rng.choice(("", "", "Review: ")) + text


# --- dialogues ----------------------------------------------------------------------------------

GREETINGS = ("Hello {b}!", "Good morning, {b}.", "Hi {b}, how are you?", "Nice to see you, {b}.")
REPLIES = ("Hello {a}!", "I am well, thank you.", "Good to see you, {a}.", "Hi {a}!")
SMALL_TALK = (
    ("What did you do yesterday?", "I went to the {place} with {c}."),
    ("Do you like {food}?", "Yes, it is {good}."),
    ("How was the {food}?", "It was {bad}, I am afraid."),
    ("Where are you going?", "To the {place}. Do you want to come?"),
    ("Have you seen my {thing}?", "It is in the {place}, I think."),
    ("Can you play {sport}?", "A little. {c} plays it very well."),
    ("It is {weather} today.", "Yes, I need my coat."),
    ("Shall we take the {vehicle}?", "No, let us walk."),
)
GOODBYES = (("Goodbye!", "See you on {day}."), ("I must go now.", "Good night!"))


def dialogue(rng: random.Random) -> str:
    """Two people greet, talk, ask one another about the world, and part."""
    world = the_world()
    a, b, c = rng.sample(world.names, 3)

    def fill(text: str) -> str:
        return text.format(
            a=a, b=b, c=c, place=rng.choice(PLACES), food=rng.choice(lexicon.FOODS),
            good=rng.choice(lexicon.POSITIVE), bad=rng.choice(lexicon.NEGATIVE),
            thing=rng.choice(lexicon.CATEGORIES["clothing"]),
            sport=rng.choice(lexicon.CATEGORIES["sport"]), weather=rng.choice(WEATHERS),
            vehicle=rng.choice(lexicon.CATEGORIES["vehicle"]), day=rng.choice(lexicon.DAYS),
        )  # fmt: skip

    turns = [(rng.choice(GREETINGS), rng.choice(REPLIES))]
    turns += rng.sample(SMALL_TALK, rng.randint(1, 3))
    for _ in range(rng.randint(0, 2)):
        name, relation = rng.choice(world.names), rng.choice(list(RELATIONS))
        if is_held_out("question", name, relation):
            continue
        value = world.people[name].facts[relation]
        turns.append((ask(relation, name, rng), RELATIONS[relation].statements[0].format(
            n=name, v=value, a=lexicon.with_article(value))))  # fmt: skip
    if rng.random() < 0.6:
        turns.append(rng.choice(GOODBYES))
    lines = []
    for first, second in turns:
        lines += [f"{a}: {fill(first)}", f"{b}: {fill(second)}"]
    return "\n".join(lines)
