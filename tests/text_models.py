"""A tokenizer of words and a table of bigrams: models whose every probability is written down."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn


class Words:
    """Splits at spaces, keeps line breaks; a word not in the vocabulary is a KeyError.

    Args:
        words: the vocabulary, with spaces between.
        end: the word that ends a text.
        start: a word put before every text, as many tokenizers do.
    """

    eos_token_id = None

    def __init__(self, words: str, end: str | None = None, start: str | None = None):
        self.words = [w.replace("\\n", "\n") for w in words.split(" ")]
        self.ids = {w: i for i, w in enumerate(self.words)}
        self.start = [] if start is None else [self.ids[start]]
        self.eos_token_id = None if end is None else self.ids[end]

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict:
        ids = [self.ids[w] for w in text.replace("\n", " \n ").split(" ") if w]
        return {"input_ids": self.start + ids if add_special_tokens else ids}

    def decode(self, ids: list[int]) -> str:
        return "".join(f" {self.words[i]}" for i in ids)


class NoCache:
    """A table of bigrams remembers nothing."""

    def select(self, rows: Tensor) -> None:
        pass


class Bigrams(nn.Module):
    """The next token depends on the last one alone.

    Args:
        tokenizer: its words.
        following: word -> {next word: probability}; what is not named has probability 0, and a
            word that is not named is followed by any.
    """

    def __init__(self, tokenizer: Words, following: dict[str, dict[str, float]],
                 block_size: int = 32):  # fmt: skip
        super().__init__()
        V = len(tokenizer.words)
        table = torch.full((V, V), 1 / V)
        for word, successors in following.items():
            table[tokenizer.ids[word]] = 0
            for successor, p in successors.items():
                table[tokenizer.ids[word], tokenizer.ids[successor]] = p
        self.table = nn.Parameter(table.log().clamp(min=-60))
        self.config = SimpleNamespace(vocab_size=V, block_size=block_size)

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None,
                use_cache=False, logits_to_keep=0):  # fmt: skip
        logits = self.table[input_ids[:, -logits_to_keep:]]
        return SimpleNamespace(logits=logits, past_key_values=NoCache())
