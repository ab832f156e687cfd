"""Two processes under ``accelerate launch`` train as one does, whatever share each has.

``two.py``, which the launcher starts twice, calls ``runs``; the test calls it a third time, alone.
"""

import json
import os
import random
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from random_models import llama
from training_runs import tiny_llama, token_batches

from course_lib.checkpoints import load_checkpoint
from course_lib.files import read_text, write_text
from course_lib.ops import IGNORE_INDEX
from course_lib.pretraining import causal_lm_loss
from course_lib.processes import Workers
from course_lib.rows import batches
from course_lib.sft import sft_loss
from course_lib.training import train

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_processes import runs
runs({folder!r})
"""
CONSTANT = {"lr": 0.01, "schedule": "constant"}


def mean_id_loss(model, batch):
    return causal_lm_loss(model, batch), {"mean_id": batch["input_ids"].float().mean()}


def packed_batches() -> list[dict]:
    """Eight batches of six examples with 1 to 12 response tokens, packed into 4, 3, ... rows."""
    rng, examples = random.Random(1), []
    for _ in range(48):
        ids = [rng.randrange(3, 17) for _ in range(rng.randint(2, 13))]
        kept = rng.randint(1, len(ids) - 1)
        examples.append({"input_ids": ids,
                         "labels": [IGNORE_INDEX] * (len(ids) - kept) + ids[-kept:]})  # fmt: skip
    return list(batches(examples, 6, 1, block_size=16, packed=True))


class Prompts:
    """Four batches of four rows: process 0 draws the first of each, process 1 the others; alone,
    a process draws them all. Process 1 may have fewer batches."""

    live = True

    def __init__(self, missing: int = 0):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.batches, self.next = token_batches(4), 0
        if self.rank == 1 and missing:
            self.batches = self.batches[:-missing]

    def state_dict(self):
        return {"next": self.next, "rank": self.rank}

    def load_state_dict(self, state):
        assert state["rank"] == self.rank, "the state of another process"
        self.next = state["next"]

    def __iter__(self):
        while self.next < len(self.batches):
            ids = self.batches[self.next]["input_ids"]
            self.next += 1
            if self.world == 2:
                ids = ids[:1] if self.rank == 0 else ids[1:]
            yield {"input_ids": ids}


def runs(folder: str) -> dict[str, list[dict]]:
    """Histories of: equal shares, with a stop; packed rows, accumulated; single rows; live streams,
    with a stop; live streams of unequal length."""
    torch.set_num_threads(1)
    folder, histories = Path(folder), {}
    for steps in (3, 6):
        histories["equal"] = train(
            tiny_llama(), token_batches(6), mean_id_loss, max_steps=steps,
            checkpoint_dir=folder / "equal", **CONSTANT,
        )  # fmt: skip
    histories["packed"] = train(
        llama(vocab_size=17), packed_batches(), sft_loss, max_steps=4, gradient_accumulation=2,
        checkpoint_dir=folder / "packed", **CONSTANT,
    )  # fmt: skip
    histories["one row"] = train(
        tiny_llama(), token_batches(2, size=1), causal_lm_loss, max_steps=2, **CONSTANT
    )
    for steps in (2, 4):
        histories["live"] = train(
            tiny_llama(), Prompts(), mean_id_loss, max_steps=steps,
            checkpoint_dir=folder / "live", **CONSTANT,
        )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        short = train(tiny_llama(), Prompts(missing=1), causal_lm_loss, max_steps=9,
                      gradient_accumulation=2, **CONSTANT)  # fmt: skip
    histories["short"] = [{"steps": len(short), "said": str(caught[-1].message)}]
    if int(os.environ.get("RANK", 0)) == 0:
        write_text(folder / "histories.json", json.dumps(histories))
    return histories


@pytest.fixture(scope="module")
def two_and_one(tmp_path_factory):
    """Folder and histories of two processes, then of one. Without a GPU ``--multi_gpu`` starts them
    on the CPU, with gloo."""
    tmp_path = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = tmp_path / "two.py"
    write_text(script, SCRIPT.format(tests=str(ROOT / "tests"), folder=str(tmp_path / "two")))
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}",
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }  # fmt: skip
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
               "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
               "--dynamo_backend=no", f"--main_process_port={port}", str(script)]  # fmt: skip
    (tmp_path / "two").mkdir()
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    two = json.loads(read_text(tmp_path / "two" / "histories.json"))
    (tmp_path / "one").mkdir()
    return tmp_path, two, runs(str(tmp_path / "one"))


def assert_alike(two: list[dict], one: list[dict], names: tuple[str, ...]) -> None:
    assert len(two) == len(one)
    for name in names:
        assert [r[name] for r in two] == pytest.approx([r[name] for r in one], rel=1e-5), name


def test_two_processes_give_the_loss_the_numbers_and_the_weights_of_one(two_and_one):
    """Each takes half of every batch; both go on from the checkpoint after three steps."""
    folder, two, one = two_and_one
    assert len(one["equal"]) == 6
    assert_alike(two["equal"], one["equal"], ("loss", "grad_norm", "mean_id"))
    a, b = (load_checkpoint(folder / n / "equal")["model"] for n in ("one", "two"))
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_so_they_do_on_packed_batches_whose_shares_differ(two_and_one):
    """Rows and response tokens of the shares differ; a mean of the processes' means would not do.
    A batch of three rows was an error."""
    _, two, one = two_and_one
    shares = [[(b["labels"][r::2] != IGNORE_INDEX).sum() for r in (0, 1)] for b in packed_batches()]
    assert any(len(b["labels"]) % 2 for b in packed_batches())
    assert all(mine != other for mine, other in shares)
    assert_alike(two["packed"], one["packed"], ("loss", "grad_norm"))
    a, b = (load_checkpoint(two_and_one[0] / n / "packed")["model"] for n in ("one", "two"))
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


def test_a_process_without_a_row_of_a_batch_adds_nothing(two_and_one):
    _, two, one = two_and_one
    assert_alike(two["one row"], one["one row"], ("loss", "grad_norm"))


def test_live_streams_are_each_process_s_own_and_go_on_from_its_own_state(two_and_one):
    """One process draws a row, the other three: together the batch of a single process."""
    _, two, one = two_and_one
    assert len(one["live"]) == 4
    assert_alike(two["live"], one["live"], ("loss", "grad_norm", "mean_id"))


def test_the_shortest_live_stream_ends_the_run(two_and_one):
    """4 and 3 batches, two a step: the second step has one of each, and no process waits for
    another. Alone, with 4, there are two steps of two."""
    _, two, one = two_and_one
    assert two["short"] == one["short"] == [
        {"steps": 2, "said": "The batches ran out after step 2 of 9."}]  # fmt: skip


def test_live_streams_of_another_number_of_processes_are_refused(two_and_one):
    with pytest.raises(ValueError, match="streams of 2 processes, and 1 are running"):
        train(tiny_llama(), Prompts(), mean_id_loss, max_steps=6,
              checkpoint_dir=two_and_one[0] / "two" / "live")  # fmt: skip


def test_every_row_belongs_to_one_process():
    """Five rows: 0 2 4 and 1 3. One row: the second process reads it too and counts 0."""
    workers = Workers(torch.device("cpu"), "no", live=False)
    workers.world, seen = 2, {}
    for workers.rank in (0, 1):
        for size in (5, 1):
            share, rows = workers.share({"x": torch.arange(size)})
            seen[workers.rank, size] = share["x"].tolist(), rows
    assert seen == {(0, 5): ([0, 2, 4], 3), (1, 5): ([1, 3], 2), (0, 1): ([0], 1), (1, 1): ([0], 0)}
