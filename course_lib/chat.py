"""The chat format: turns of a user and an assistant as one text, and as token ids with labels.

The course's format is ``<|user|> question<|assistant|> answer<|end|>``, and the same as a template
in the shipped tokenizers. Other models bring templates of their own: see ``own_format``.
Simplified away: system messages, tools, images.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from course_lib.completion import complete
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


def encode_chat(tokenizer, messages: Sequence[Message], form: Format = course_format) -> Row:
    """Token ids, and labels on what the assistant says: its words and the token that ends them.

    Args:
        form: ``course_format``, or ``own_format(tokenizer)``.

    Returns:
        ``input_ids`` and unshifted ``labels``; ``IGNORE_INDEX`` on everything that the user says
        and on the tokens that open a turn.

    Raises:
        ValueError: no turn of the assistant; a format whose text changes when turns follow.

    Example: a word a token; 2 is ``<|user|>``, 3 ``<|assistant|>``, 0 ``<|end|>``.
        >>> encode_chat(tokenizer, turns("plural: dog", "dogs"))
        {'input_ids': [2, 4, 5, 3, 6, 0], 'labels': [-100, -100, -100, -100, 6, 0]}
    """

    def ids(count: int, add_generation_prompt: bool = False) -> list[int]:
        text = form(messages[:count], add_generation_prompt)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    whole = ids(len(messages))
    labels = [IGNORE_INDEX] * len(whole)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = ids(i, add_generation_prompt=True)
        until = whole if i + 1 == len(messages) else ids(i + 1)
        if whole[: len(before)] != before or whole[: len(until)] != until:
            raise ValueError(
                f"The text up to turn {i} is not how the whole text begins, so its answer cannot "
                "be found: the chat template rewrites earlier turns. Train on the last turn alone."
            )
        labels[len(before) : len(until)] = until[len(before) :]
    if all(label == IGNORE_INDEX for label in labels):
        raise ValueError("No message is the assistant's: there is nothing to learn from.")
    return {"input_ids": whole, "labels": labels}


def reply(
    model: nn.Module, tokenizer, prompts: Sequence[str], max_new_tokens: int = 64,
    form: Format = course_format, **settings,
) -> list[str]:  # fmt: skip
    """What the assistant answers to each prompt, up to the token that ends its turn.

    Args:
        settings: ``temperature``, ``top_p``, ``generator``, ... of ``completion.complete``.
    """
    texts = [form(turns(prompt), True) for prompt in prompts]
    return [text.strip() for text in complete(model, tokenizer, texts, max_new_tokens, stop=None,
                                              **settings)]  # fmt: skip


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
