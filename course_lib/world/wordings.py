"""The tasks asked as people ask: sentences that hold their input, most of them questions.

The corpus asks about words, people and towns in such sentences ("What is the plural of wolf?"), and
never about lists. The instruction data ask for every task so (``instructions``), beside commands
with the input behind them.
Simplified away: spelling mistakes, politeness, more than one request at a time.
"""

from course_lib.world.words import QUESTIONS

SELECTED = {"first": "first", "second": "second", "last": "last"}
TRANSFORMED = {"plural": "plural", "opposite": "opposite", "past": "past tense",
               "comparative": "comparative"}  # fmt: skip

OTHER_QUESTIONS: dict[str, tuple[str, ...]] = {
    "plural": ("What is the plural form of {x}?", "How does one write {x} in the plural?"),
    "opposite": ("Which word is the opposite of {x}?", "What does one call the contrary of {x}?"),
    "past": ("What is {x} in the past tense?", "How does one write {x} in the past tense?"),
    "comparative": ("What is the comparative form of {x}?", "How does one compare with {x}?"),
    "category": ("Which category does {x} belong to?", "What kind of thing does {x} name?"),
    "young": ("What is the young of the {x} called?", "What does one call a young {x}?"),
    "sound": ("What sound does a {x} make?", "What is the cry of the {x} called?"),
    "material": ("Which material is a {x} made of?", "What is a {x} often made of?"),
    "article": ("What is {x} with a or an?", "How does one write {x} with a or an?"),
    "digits": ("What is {x} in digits?", "How does one write {x} in digits?"),
    "number_word": ("What is {x} in words?", "What is the number {x} called?"),
    "next_day": ("What day comes after {x}?", "Which day is it after {x}?"),
    "day_before": ("What day comes before {x}?", "Which day is it before {x}?"),
    "next_month": ("What month comes after {x}?", "Which month is it after {x}?"),
    "next_letter": ("What letter comes after {x}?", "Which letter of the alphabet follows {x}?"),
    "region": ("In which region is {x}?", "Which region does {x} lie in?",
               "Which part of the country is {x} in?"),
    "home": ("Where does {x} live?", "Which town does {x} live in?",
             "In which town is {x}'s home?"),
    "job": ("What is {x}'s job?", "What does {x} work as?", "What does {x} do for a living?"),
    "first_letter": ("What is the first letter of {x}?", "What letter does {x} begin with?"),
    "last_letter": ("What is the last letter of {x}?", "What letter does {x} end with?"),
    "spell": ("How does one spell {x}?", "What are the letters of {x}?"),
    "length": ("How many letters does {x} have?", "How many letters long is {x}?"),
    "sentiment_word": ("Is {x} a positive or a negative word?", "Is {x} positive or negative?"),
    "first": ("Which word comes first in {x}?", "What is the first word of {x}?"),
    "second": ("Which word comes second in {x}?", "What is the second word of {x}?"),
    "last": ("Which word comes last in {x}?", "What is the last word of {x}?"),
    "reverse": ("What is {x} backwards?", "How does one write {x} backwards?"),
    "count": ("How many words are {x}?", "How many words are there in {x}?"),
    "without_first": ("What is {x} without the first word?", "What follows the first word in {x}?"),
    "without_last": ("What is {x} without the last word?",
                     "What stands before the last word in {x}?"),
    "swap_ends": ("What is {x} with the first and the last word swapped?",
                  "How does {x} read when its two ends change places?"),
    "join": ("How does one write {x} with and in place of the commas?",
             "What is {x} with and between the words?"),
    "sort": ("What is {x} in alphabetical order?", "How does the alphabet order {x}?"),
    "copy": ("How does {x} read?", "What does the list {x} say?"),
    "contains": ("Is the word in brackets among {x}?",
                 "Does the list have the word in brackets: {x}?"),
    "largest": ("Which number of {x} is the largest?", "What is the largest of {x}?"),
    "smallest": ("Which number of {x} is the smallest?", "What is the smallest of {x}?"),
    "ascending": ("What is {x} in rising order?", "How does one write {x} from small to large?"),
    "parity": ("Is the last number of {x} even or odd?", "Even or odd: what is the last of {x}?"),
    "sum": ("What is {x}?", "How much is {x}?"),
    "odd_one_out": ("Which word does not belong: {x}?", "Which of {x} is the odd one out?"),
    "pick_kind": ("Which word is of the kind in brackets: {x}?",
                  "Which of these is the kind in brackets: {x}?"),
    "giver": ("{x}. Who gives?", "{x}. Who was it that gave the thing away?"),
    "receiver": ("{x}. Who gets it?", "{x}. Who has the thing now?"),
    "gift": ("{x}. What is given?", "{x}. What changes hands?"),
    "sentiment": ("{x}. Is that positive or negative?", "{x}. Is this positive or negative?"),
    **{f"{s}_{t}": (f"What is the {form} of the {s} word of {{x}}?",
                    f"What is the {form} of the word that comes {s} in {{x}}?")
       for s in SELECTED for t, form in TRANSFORMED.items()},
}  # fmt: skip
"""Task -> sentences with ``{x}`` for the input, beside those of ``words.QUESTIONS``."""


def questions_for(name: str) -> tuple[str, ...]:
    """The questions that ask for a task of ``tasks.TASKS``; the corpus's own first.

    Example:
        >>> questions_for("plural")[0]
        'What is the plural of {x}?'
    """
    own = (QUESTIONS[name],) if name in QUESTIONS else ()
    return own + OTHER_QUESTIONS[name]
