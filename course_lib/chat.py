"""The chat format: turns of a user and an assistant as one text, and as token ids with labels.

The course's format is ``<|user|> question<|assistant|> answer<|end|>``, and the same as a template
in the shipped tokenizers. Other models bring templates of their own: see ``own_format``.
A format writes every special token itself, the start token too, so chats are tokenised without
adding any: in training, in ``reply``, and where tokens are counted
(``completion.token_counter(tokenizer, add_special_tokens=False)``).
Simplified away: system messages, tools, images.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from torch import nn

from course_lib.completion import complete
from course_lib.generation import end_ids
from course_lib.measuring import END, parse_answer
from course_lib.ops import IGNORE_INDEX
from course_lib.rows import Row

Message = Mapping[str, str]
"""``{"role": "user" or "assistant", "content": text}``."""
Format = Callable[[Sequence[Message], bool], str]
"""(messages, add_generation_prompt) -> text."""
USER, ASSISTANT = "<|user|>", "<|assistant|>"


def turns(*texts: str) -> list[dict[str, str]]:
    """Messages in which user and assistant take turns.

    Example:
        >>> turns("Hello", "Good day")
        [{'role': 'user', 'content': 'Hello'}, {'role': 'assistant', 'content': 'Good day'}]
    """
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def course_format(messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The messages in the course's format; with ``add_generation_prompt`` the assistant is next.

    Raises:
        ValueError: a role that is neither user nor assistant.

    Example:
        >>> course_format(turns("Give the plural: dog"), add_generation_prompt=True)
        '<|user|> Give the plural: dog<|assistant|>'
    """
    text = ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role not in ("user", "assistant"):
            raise ValueError(f"Roles are user and assistant, got {role!r}.")
        text += f"{USER} {content}" if role == "user" else f"{ASSISTANT} {content}{END}"
    return text + ASSISTANT if add_generation_prompt else text


def own_format(tokenizer) -> Format:
    """The format of a tokenizer's own ``chat_template``, for models from the hub.

    Raises:
        ValueError: the tokenizer has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "This tokenizer has no chat_template: its model was not made for chats. Use "
            "course_format, after adding its special tokens."
        )

    def render(messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )

    return render


# --- tokens and labels --------------------------------------------------------------------------


def encode_chat(
    tokenizer, messages: Sequence[Message], form: Format = course_format, last_only: bool = False
) -> Row:  # fmt: skip
    """Token ids, and labels on what the assistant says: its words and what ends its turn.

    Where the tokenizer would merge the end of a prompt with the start of the answer, the two are
    tokenised apart: a model that answers has read the prompt alone, and writes its own tokens.

    Args:
        form: ``course_format``, or ``own_format(tokenizer)``.
        last_only: labels on the last answer alone; for templates that shorten earlier ones.

    Returns:
        ``input_ids`` and unshifted ``labels``; ``IGNORE_INDEX`` on everything that the user says
        and on the tokens that open a turn.

    Raises:
        ValueError: no turn of the assistant; a format whose text changes when turns follow, so
            that an answer cannot be found in it; tokens that cannot be told apart.

    Example: a word a token; 2 is ``<|user|>``, 3 ``<|assistant|>``, 0 ``<|end|>``.
        >>> encode_chat(tokenizer, turns("plural: dog", "dogs"))
        {'input_ids': [2, 4, 5, 3, 6, 0], 'labels': [-100, -100, -100, -100, 6, 0]}
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise ValueError("No message is the assistant's: there is nothing to learn from.")
    if last_only:
        answers = answers[-1:]
    text = form(messages, False)
    spans = [_answer_span(messages, i, form, text) for i in answers]
    borders = sorted({len(text), *(border for span in spans for border in span)})
    ids, positions = _tokens_between(tokenizer, text, borders)
    labels = [IGNORE_INDEX] * len(ids)
    for start, end in spans:
        learnt = slice(positions[start], positions[end])
        labels[learnt] = ids[learnt]
    return {"input_ids": ids, "labels": labels}


def _answer_span(
    messages: Sequence[Message], i: int, form: Format, text: str
) -> tuple[int, int]:  # fmt: skip
    """Where in the text of all messages the assistant's message i begins and its turn ends."""
    prompt = form(messages[:i], True)
    turn = text if i + 1 == len(messages) else form(messages[: i + 1], False)
    if not text.startswith(turn):
        raise ValueError(
            f"The text up to message {i} is not how the whole text begins: the chat template "
            "rewrites earlier turns. Learn the last answer alone, last_only=True."
        )
    if not text.startswith(prompt):
        raise ValueError(
            f"The prompt for message {i}, which ends in {prompt[-40:]!r}, is not how the text with "
            "the answer begins: the chat template opens an answered turn otherwise, or rewrites "
            "what stands before it. Use a format that does neither."
        )
    return len(prompt), len(turn)


def _tokens_between(
    tokenizer, text: str, borders: Sequence[int]
) -> tuple[list[int], dict[int, int]]:  # fmt: skip
    """The tokens of the text, none of which crosses a border, and border -> tokens before it.

    Args:
        borders: in the text, ascending; the last is its end.
    """

    def ids(part: str) -> list[int]:
        return list(tokenizer(part, add_special_tokens=False)["input_ids"])

    whole = ids(text)
    heads = [*(ids(text[:border]) for border in borders[:-1]), whole]
    if all(whole[: len(head)] == head for head in heads):
        return whole, dict(zip(borders, map(len, heads)))
    apart, positions = [], {}
    for start, end in pairwise((0, *borders)):
        apart += ids(text[start:end])
        positions[end] = len(apart)
    if tokenizer.decode(apart) != tokenizer.decode(whole):
        raise ValueError(
            "The tokenizer merges the end of a prompt with the start of its answer, and the text "
            "changes when they are tokenised apart: use a format whose prompts end in a special "
            "token or a line break."
        )
    return apart, positions


# --- replies ------------------------------------------------------------------------------------


def end_tokens(tokenizer, form: Format = course_format) -> tuple[int, ...]:
    """The tokens that end the assistant's turn.

    The tokenizer's ``eos_token``, and the first special token that the format writes behind an
    answer: ``<|im_end|>`` of ChatML, ``<end_of_turn>`` of Gemma, which are not always the same.
    """
    ends = dict.fromkeys(end_ids(getattr(tokenizer, "eos_token_id", None)))
    answer = "answer"
    _, found, behind = form(turns("question", answer), False).rpartition(answer)
    if found and hasattr(tokenizer, "get_added_vocab"):
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
        ends |= dict.fromkeys([token for token in ids if token in special][:1])
    return tuple(ends)


def reply(
    model: nn.Module, tokenizer, prompts: Sequence[str], max_new_tokens: int = 64,
    form: Format = course_format, **settings,
) -> list[str]:  # fmt: skip
    """What the assistant answers to each prompt, up to the token that ends its turn.

    Args:
        settings: ``temperature``, ``top_p``, ``generator``, ... of ``completion.complete``;
            ``eos_token_id`` is that of ``end_tokens`` unless given.
    """
    texts = [form(turns(prompt), True) for prompt in prompts]
    settings = {"eos_token_id": end_tokens(tokenizer, form), "stop": None} | settings
    written = complete(model, tokenizer, texts, max_new_tokens, add_special_tokens=False,
                       **settings)  # fmt: skip
    return [text.strip() for text in written]


def answered(
    model: nn.Module, tokenizer, pairs: Sequence[tuple[str, str]], max_new_tokens: int = 64,
    form: Format = course_format,
) -> list[bool]:  # fmt: skip
    """Whether the greedy reply to each prompt has the answer of the response beside it.

    Args:
        pairs: (prompt, response). Both answers are read by ``measuring.parse_answer``: steps may
            differ, what follows "The answer is" may not.
    """
    replies = reply(model, tokenizer, [prompt for prompt, _ in pairs], max_new_tokens, form)
    right = [response for _, response in pairs]
    return [parse_answer(a) == parse_answer(b) for a, b in zip(replies, right, strict=True)]
