"""The stream that PPO and GRPO share, without either: a rollout that only counts."""

import pytest
import torch
from torch import nn

from course_lib.live_rollouts import LiveRollouts


class Counting(LiveRollouts):
    """Rollouts of three rows: the prompt's token, and the number of the rollout."""

    def __init__(self, prompts, seed=0, rows=3, minibatch_size=2, epochs=2):
        super().__init__(nn.Linear(1, 1), prompts, minibatch_size=minibatch_size, epochs=epochs,
                         generator=torch.Generator().manual_seed(seed))  # fmt: skip
        self.rows = rows

    def roll_out(self):
        prompts = self.next_prompts(self.rows)
        self.history.append({"number": len(self.history)})
        number = torch.full((self.rows,), len(self.history))
        return {"labels": torch.tensor(prompts), "number": number}


def test_each_row_is_given_once_an_epoch_and_the_last_minibatch_is_what_is_left():
    """Three rows by two: minibatches of 2, 1, 2, 1 rows, then the next rollout."""
    stream = Counting(iter([[n] for n in range(9)]))
    batches = [next(stream) for _ in range(5)]
    assert [len(batch["labels"]) for batch in batches] == [2, 1, 2, 1, 2]
    for epoch in (batches[:2], batches[2:4]):
        assert sorted(torch.cat([batch["labels"] for batch in epoch]).flatten()) == [0, 1, 2]
    assert [batch["number"][0].item() for batch in batches] == [1, 1, 1, 1, 2]
    assert len(stream.history) == 2 and min(batches[4]["labels"]) >= 3


@pytest.mark.parametrize("kind", ["a sequence", "an iterator"])
@pytest.mark.parametrize("taken", [0, 3, 6, 7])
def test_it_goes_on_where_its_state_was_taken(kind, taken):
    def stream():
        rows = [[n] for n in range(30)]
        return Counting(rows if kind == "a sequence" else iter(rows))

    whole = stream()
    for _ in range(taken):
        next(whole)
    state, other = whole.state_dict(), stream()
    other.load_state_dict(state)
    for _ in range(9):
        a, b = next(whole), next(other)
        assert torch.equal(a["labels"], b["labels"]) and torch.equal(a["number"], b["number"])
    assert whole.history == other.history


def test_prompts_that_run_out_are_named():
    stream = Counting(iter([[1], [2]]))
    with pytest.raises(ValueError, match="2 were left and a rollout takes 3"):
        next(stream)


def test_a_stream_without_a_rollout_of_its_own_says_so():
    with pytest.raises(NotImplementedError):
        next(LiveRollouts(nn.Linear(1, 1), [[1]], minibatch_size=1, epochs=1,
                          generator=torch.Generator()))  # fmt: skip
