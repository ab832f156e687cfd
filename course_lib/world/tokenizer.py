"""Byte-level BPE of about 2,000 tokens (Sennrich et al., 2016), trained on the corpus.

Words carry their leading space; every digit is a token of its own (with its space, if it has one),
so that numbers are read digit by digit; line breaks and signs stand alone. Bytes cover the rest, so
any text can be written, if not briefly.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from course_lib.world import lexicon

SPECIAL_TOKENS = ("<|end|>", "<|pad|>", "<|user|>", "<|assistant|>")
VOCAB_SIZE = 2048
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""What ``save_tokenizer`` writes, and what has to lie beside a model."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|> ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|> ' + message['content'] + '<|end|>' }}"
    "{% else %}{{ raise_exception('Roles are user and assistant, got ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""``<|user|> question<|assistant|> answer<|end|>``: every completion starts with a space."""

PIECES = r"'s| ?[A-Za-z]+| ?\d|\n| ?(?:->|-->|=>|>>|::|\.\.\.)| ?[^\sA-Za-z\d]|\s"


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A BPE tokenizer with ``SPECIAL_TOKENS`` as ids 0 to 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(texts, _lexicon_texts()), trainer)
    return tokenizer


def _lexicon_texts() -> Iterator[str]:
    """The closed word lists many times over, so that each of their words becomes one token."""
    words = [w for words in lexicon.CATEGORIES.values() for w in words]
    words += [*lexicon.RESERVED_LABELS, *lexicon.LABEL_WORDS, *lexicon.TOWNS]
    words += [*lexicon.FEMALE_NAMES, *lexicon.MALE_NAMES]
    yield from 100 * ["".join(f" {w}" for w in words)]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``FILES`` as transformers reads them."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        padding_side="left",
        model_max_length=256,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
