"""Templates of prompts, and the examples that are put into them.

The lecture's "add instruction, feature, architecture, objective prompt" names parts of a prompt.
Each is a field of ``Prompt``, so that each can be left out and its worth measured: instruction,
what to do; feature, what to know about this input (``context``); architecture, how the answer is
built (``output_format``, and the layout of the examples); objective, what a good answer is for.
Simplified away: chat messages; examples chosen by their likeness to the query.
"""

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from course_lib.completion import fit

Input = str | Mapping[str, str]
"""One text, the template's {input}, or the values of several placeholders."""
Example = tuple[Input, str]
"""An input and its output; the output may be a whole chain of thought."""
PARTS = ("instruction", "context", "objective", "output_format")


@dataclass(frozen=True)
class Prompt:
    """A template. Parts that are "" are left out; placeholders in braces are filled in.

    The query is written as an example is, up to the output and without the space before it, for
    the completion starts with that space. {number} counts examples and query from 1 on.

    Raises:
        ValueError: a template that cannot be read, or a layout without one {output} after the
            input.

    Example:
        >>> print(Prompt(instruction="Give the plural.").render("fox", [("dog", "dogs")]))
        Give the plural.
        dog -> dogs
        fox ->
    """

    instruction: str = ""  # what to do
    context: str = ""  # the lecture's feature: what to know about the input
    objective: str = ""  # what a good answer is for
    output_format: str = ""  # the lecture's architecture: how the answer is built
    layout: str = "{input} -> {output}\n"  # one example
    trigger: str = ""  # the answer's first words, put for the model (Kojima et al., 2022)

    def __post_init__(self) -> None:
        for part in PARTS:
            if "output" in _placeholders(part, getattr(self, part)):
                raise ValueError(f"{part} has an {{output}}: only the layout shows outputs.")
        names = _placeholders("layout", self.layout)
        if names.count("output") != 1 or set(names[: names.index("output")]) <= {"number"}:
            raise ValueError(
                f"The layout {self.layout!r} must hold {{output}} once, after a placeholder of the "
                "input, e.g. '{input} -> {output}\\n'."
            )

    def without(self, *parts: str) -> "Prompt":
        """The same prompt without some of ``PARTS`` or the trigger: for ablations."""
        if unknown := [p for p in parts if p not in (*PARTS, "trigger")]:
            raise ValueError(f"Unknown parts {unknown}: choose from {(*PARTS, 'trigger')}.")
        return replace(self, **dict.fromkeys(parts, ""))

    def render(self, query: Input, examples: Sequence[Example] = ()) -> str:
        """The text: the parts in the order of the fields, the examples in theirs, the query.

        Raises:
            ValueError: a placeholder for which the query or an example has no value.
        """
        fields = _fields(query, len(examples) + 1)
        lines = [_fill(part, getattr(self, part), fields) + "\n" for part in PARTS
                 if getattr(self, part)]  # fmt: skip
        for i, (x, y) in enumerate(examples, 1):
            lines.append(_fill("layout", self.layout, _fields(x, i) | {"output": y}))
        question = _fill("layout", self.layout, fields, until="output").rstrip(" ")
        space = "" if question.endswith("\n") or not self.trigger else " "
        return "".join(lines) + question + space + self.trigger


def _placeholders(name: str, template: str) -> list[str]:
    """The names in braces, in order."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"{name} {template!r} cannot be read ({error}): write braces that are meant as such "
            "twice."
        ) from None
    for _, field, spec, conversion in pieces:
        if field is not None and (not field.isidentifier() or spec or conversion):
            raise ValueError(
                f"{name} {template!r} has a placeholder {{{field}}} that is no plain name: write "
                "e.g. {input}, and braces that are meant as such twice."
            )
    return [field for _, field, _, _ in pieces if field is not None]


def _fields(x: Input, number: int) -> dict[str, str]:
    return {"number": str(number), **({"input": x} if isinstance(x, str) else x)}


def _fill(name: str, template: str, fields: Mapping[str, str], until: str | None = None) -> str:
    """The template with its values, up to the placeholder ``until``; values are not read again."""
    text = ""
    for literal, field, _, _ in string.Formatter().parse(template):
        text += literal
        if field is not None and field == until:
            break
        if field is not None and field not in fields:
            raise ValueError(
                f"{name} {template!r} has the unknown placeholder {{{field}}}: this input gives "
                f"{', '.join(sorted(fields))}."
            )
        text += "" if field is None else fields[field]
    return text


@dataclass(frozen=True)
class FewShot:
    """A prompt and the examples that it holds."""

    text: str
    examples: tuple[Example, ...]


def few_shot(
    prompt: Prompt,
    query: Input,
    pool: Sequence[Example],
    k: int | None,
    rng: random.Random,
    *,
    budget: float | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> FewShot:
    """A prompt with ``k`` examples of the pool in random order; fewer where the budget ends.

    Examples of the query's own input are never drawn: they would give its answer away.

    Args:
        k: None = as many as fit.
        budget: how many tokens the prompt may have; None = any number. Leave room for the
            completion: ``context_size(model) - max_new_tokens``.
        count_tokens: see ``token_counter``; needed with a budget.

    Raises:
        ValueError: too few examples in the pool, a query that does not fit, no example that fits.
    """
    others = [example for example in pool if example[0] != query]
    k = len(others) if k is None else k
    if not 0 <= k <= len(others):
        raise ValueError(
            f"k={k} examples cannot be drawn: the pool has {len(others)}, those of the query's own "
            "input apart."
        )
    examples = tuple(rng.sample(others, k))
    if budget is not None:
        if count_tokens is None:
            raise ValueError("A budget is counted in tokens: give count_tokens too.")
        fitting = fit(examples, lambda chosen: prompt.render(query, chosen), budget, count_tokens)
        if examples and not fitting:
            raise ValueError(
                f"No example fits into {budget} tokens beside the query: shorten the examples or "
                "the instruction, leave less room for new tokens, or ask for k=0."
            )
        examples = fitting
    return FewShot(prompt.render(query, examples), examples)
