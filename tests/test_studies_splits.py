"""What the studies of chapter 07 share: the split, the rates, the items, the log-probabilities."""

import math
import random
from types import SimpleNamespace

import pytest
import torch

from course_lib.studies import splits
from course_lib.studies.tuning import shipped
from course_lib.world.instructions import CLUSTERS, INSTRUCTIONS, KIN
from course_lib.world.words import QUESTIONS


def test_the_declared_clusters_are_those_whose_every_task_the_corpus_asks():
    """The corpus asks of sentiment only the words, not the sentences: the cluster is not held
    out."""
    assert splits.HELD_OUT == ("words", "order", "spelling")
    assert "sentiment_word" in QUESTIONS and "sentiment" not in QUESTIONS


def test_neither_held_out_types_nor_their_kin_are_trained():
    trained = {INSTRUCTIONS[name].cluster for name in splits.TRAINED}
    kin = {c for pair in KIN for c in pair if set(pair) & set(splits.HELD_OUT)}
    assert not trained & (kin | set(splits.HELD_OUT))
    assert {INSTRUCTIONS[name].cluster for name in splits.UNSEEN} == set(splits.HELD_OUT)
    assert len(splits.UNSEEN) == sum(len(CLUSTERS[c]) for c in splits.HELD_OUT) == 17


def test_tokens_of_counts_the_end_of_the_reply():
    """ "even" and "odd" are one token each, and the end is another: 2."""
    tokenizer = shipped()[1]
    assert [len(tokenizer(text)["input_ids"]) for text in (" even", " odd")] == [1, 1]
    assert splits.tokens_of("parity") == 2
    assert splits.tokens_of("sort") > 4


def test_items_are_the_same_for_a_seed_and_others_for_another():
    first = splits.items_of(["plural", "opposite"], "corpus", 3, 4, held_out=1)
    assert first == splits.items_of(["plural", "opposite"], "corpus", 3, 4, held_out=1)
    assert first != splits.items_of(["plural", "opposite"], "corpus", 4, 4, held_out=1)
    assert [item.task for item in first] == ["plural"] * 4 + ["opposite"] * 4
    assert all(item.prompt.startswith("What is the ") for item in first)


@pytest.mark.parametrize("wording", splits.WORDINGS)
def test_each_wording_is_one_of_its_kind(wording):
    task = INSTRUCTIONS["plural"]
    kinds = {"corpus": task.questions[:1], "question": task.questions[1:],
             "command": task.templates}  # fmt: skip
    some = splits.items_of(["plural"], wording, 0, 20)
    texts = {t.replace("{x}", x) for t in kinds[wording] for x in _inputs(task)}
    assert {item.prompt for item in some} <= texts


def _inputs(task):
    rng = random.Random(0)
    return {task.draw(rng, i % 2 == 0)[0] for i in range(3000)}


class Uniform(torch.nn.Module):
    """Every token has probability 1/V."""

    def __init__(self, vocabulary):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.vocabulary = vocabulary

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.vocabulary))


def test_logps_sums_over_the_labelled_tokens_only():
    """Uniform over V = 2048: three labelled tokens have 3 log(1/2048), however long the prompt and
    whatever the padding."""
    rows = [{"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]},
            {"input_ids": [5, 6], "labels": [-100, 6]}]  # fmt: skip
    want = torch.tensor([-3 * math.log(2048), -math.log(2048)])
    torch.testing.assert_close(splits.logps(Uniform(2048), rows), want)


def test_the_likelier_text_is_that_with_fewer_tokens_under_a_uniform_model():
    short = [{"input_ids": [5, 6], "labels": [-100, 6]}] * 3
    long = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}] * 3
    assert splits.likelier(Uniform(2048), short, long) == 1
    assert splits.likelier(Uniform(2048), long, short) == 0


def test_embeddings_stay_and_the_shipped_model_too():
    before = {name: p.clone() for name, p in splits.frozen().named_parameters()}
    model = splits.tuned_on(splits.task_mixture(["parity"], 0), steps=1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and not any("embed" in name for name in moved)
    for name, parameter in splits.frozen().named_parameters():
        assert torch.equal(parameter, before[name])
