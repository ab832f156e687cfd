"""Runs that are killed and go on bit for bit; checkpoints that can always be read.

``python tests/test_checkpoints.py FOLDER`` is the driver of the SIGKILL test.
"""

import io
import json
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import (
    NO_CLIP,
    Line,
    mean_output,
    read_csv,
    rows,
    sgd,
    tiny_llama,
    token_batches,
)

from course_lib import checkpoints, files, training
from course_lib.checkpoints import MetricsFile, load_checkpoint, save_checkpoint
from course_lib.files import read_text
from course_lib.optim import muon_adamw
from course_lib.pretraining import causal_lm_loss
from course_lib.training import train

ROOT = Path(__file__).parents[1]


def test_a_new_column_rewrites_the_file(tmp_path):
    metrics = MetricsFile(tmp_path / "m.csv", [])
    metrics.append({"step": 1, "loss": 2.0})
    metrics.append({"step": 2, "loss": 1.5, "acc": 0.5})
    metrics.append({"step": 3, "loss": 1.0})
    lines = read_text(tmp_path / "m.csv").split()
    assert lines == ["step,loss,acc", "1,2.0,", "2,1.5,0.5", "3,1.0,"]


# --- checkpoints --------------------------------------------------------------------------------


def interrupted(folder: Path, at: int) -> None:
    """A run of four steps that stops in step ``at``."""
    model, calls = Line(), []

    def loss_fn(model, batch):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return mean_output(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(model, rows(1, 2, 4, 8), loss_fn, max_steps=4, optimizer=sgd(model),
              schedule="constant", max_grad_norm=NO_CLIP, checkpoint_dir=folder,
              checkpoint_every=1, metrics_path=folder / "m.csv")  # fmt: skip


def resumed(folder: Path, loss_fn=mean_output) -> tuple[float, list[dict]]:
    model = Line()
    history = train(model, rows(1, 2, 4, 8), loss_fn, max_steps=4, optimizer=sgd(model),
                    schedule="constant", max_grad_norm=NO_CLIP, checkpoint_dir=folder,
                    checkpoint_every=1, metrics_path=folder / "m.csv")  # fmt: skip
    return model.w.item(), history


def test_a_resumed_run_reads_each_batch_once(tmp_path):
    """Batches 1, 2, 4, 8 add up to 15 in any order of stops; a batch read twice or never would
    show."""
    interrupted(tmp_path, at=3)
    w, history = resumed(tmp_path)
    assert w == -15 and [r["step"] for r in history] == [1, 2, 3, 4]
    assert [int(r["step"]) for r in read_csv(tmp_path / "m.csv")] == [1, 2, 3, 4]


def test_a_finished_run_is_not_run_again(tmp_path):
    first = resumed(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    assert resumed(tmp_path, loss_fn=None) == first
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("damage", [
    lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"\0" * 999,
])  # fmt: skip
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    interrupted(tmp_path, at=4)
    newest, before = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match="cannot be read; trying the one before"):
        assert load_checkpoint(tmp_path)["step"] == 2
    with pytest.warns(UserWarning, match="cannot be read"):
        assert resumed(tmp_path)[0] == -15
    for path in (newest, before):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="Remove the folder to start"):
        load_checkpoint(tmp_path)


def test_no_checkpoint_is_no_error(tmp_path):
    assert load_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's always full device")
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    """The new file goes to a full device."""
    save_checkpoint(tmp_path, {"step": 1})
    (tmp_path / f"checkpoint.pt.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="The one before is still there: make room"):
        save_checkpoint(tmp_path, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert load_checkpoint(tmp_path) == {"step": 1}


def test_figures_of_numpy_and_torch_do_not_spoil_the_checkpoint(tmp_path):
    """Checkpoints are read with ``weights_only``, which refuses numpy's scalars."""
    model = Line()
    train(model, rows(1), mean_output, max_steps=1, optimizer=sgd(model), checkpoint_dir=tmp_path,
          evaluate=lambda m, step: {"a": np.float64(0.5), "b": torch.tensor(2.0)})  # fmt: skip
    assert load_checkpoint(tmp_path)["history"][0]["a"] == 0.5


def test_what_cannot_be_read_again_does_not_replace_what_can(tmp_path):
    """An array of NumPy is stored and refused when it is read (``weights_only``)."""
    save_checkpoint(tmp_path, {"step": 1})
    message = r"read again \(Unsupported global: .*reconstruct\)\. Let state_dict"
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path, {"step": 2, "batches": {"order": np.arange(3)}})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert load_checkpoint(tmp_path) == {"step": 1}


def test_numbers_of_numpy_are_stored_as_python_numbers(tmp_path):
    """In lists, tuples and dicts, as keys too."""
    state = {"a": [np.float64(0.5), (np.int64(3),)], np.int64(7): {"b": np.bool_(True)}}
    save_checkpoint(tmp_path, state)
    read = load_checkpoint(tmp_path)
    assert read == {"a": [0.5, (3,)], 7: {"b": True}}
    assert [type(x) for x in (read["a"][0], read["a"][1][0], read[7]["b"])] == [float, int, bool]


def test_a_rate_and_a_schedule_of_numpy_do_not_spoil_the_checkpoint(tmp_path):
    """Both went into the optimizer's state, which was written and could not be read."""
    train(Line(), rows(1, 1), mean_output, max_steps=2, lr=np.float64(0.1), checkpoint_dir=tmp_path,
          schedule=lambda step: np.float64(0.5))  # fmt: skip
    state = load_checkpoint(tmp_path)
    assert [type(row["lr"]) for row in state["history"]] == [float, float]
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.05)


class Counter:
    """Batches 1, 2, 4, 8; its state also holds whatever ``extra`` gives."""

    def __init__(self, extra):
        self.next, self.extra = 0, extra

    def state_dict(self):
        return {"next": self.next, "extra": self.extra(self.next)}

    def load_state_dict(self, state):
        self.next = state["next"]

    def __iter__(self):
        while self.next < 4:
            self.next += 1
            yield rows(2 ** (self.next - 1))[0]


def test_a_stream_whose_state_cannot_be_read_again_is_refused_before_the_first_step(tmp_path):
    stream, model = Counter(lambda n: np.zeros(2)), Line()
    with pytest.raises(ValueError, match="not be read again"):
        train(model, stream, mean_output, max_steps=4, checkpoint_dir=tmp_path)
    assert stream.next == 0 and model.w.item() == 0
    assert train(model, stream, mean_output, max_steps=4)  # without checkpoints it is no matter


def test_a_state_that_turns_unreadable_costs_no_older_checkpoint(tmp_path):
    """Its third state does; the run stops in step 3 and the checkpoint of step 2 stays."""
    stream = Counter(lambda n: np.zeros(2) if n == 3 else n)
    with pytest.raises(ValueError, match="not be read again"):
        train(Line(), stream, mean_output, max_steps=4, checkpoint_dir=tmp_path, checkpoint_every=1)
    assert load_checkpoint(tmp_path)["step"] == 2
    assert not list(tmp_path.glob("*.part"))


def test_left_overs_of_killed_runs_go_with_the_next_checkpoint(tmp_path):
    (tmp_path / "checkpoint.pt.99.part").write_bytes(b"half")
    (tmp_path / "mine.part").write_bytes(b"half")
    save_checkpoint(tmp_path, {"step": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "mine.part"]


# --- going on -----------------------------------------------------------------------------------


def test_a_resumed_run_takes_the_new_learning_rate(tmp_path):
    """Two steps at rate 1 on 1 and 2, two at rate .5 on 4 and 8: 1 + 2 + 2 + 4 = 9. The rate of the
    checkpoint would give 15, and nothing would have been said."""
    interrupted(tmp_path, at=3)
    model = Line()
    history = train(model, rows(1, 2, 4, 8), mean_output, max_steps=4, schedule="constant",
                    optimizer=sgd(model, lr=0.5), max_grad_norm=NO_CLIP,
                    checkpoint_dir=tmp_path)  # fmt: skip
    assert model.w.item() == -9 and [r["lr"] for r in history] == [1, 1, 0.5, 0.5]


def test_other_settings_stay_those_of_the_checkpoint_and_this_is_said(tmp_path):
    interrupted(tmp_path, at=3)
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9)
    message = r"momentum stays 0, as in the checkpoint; 0\.9 is ignored"
    with pytest.warns(UserWarning, match=message):
        train(model, rows(1, 2, 4, 8), mean_output, max_steps=4, optimizer=optimizer,
              schedule="constant", max_grad_norm=NO_CLIP, checkpoint_dir=tmp_path)  # fmt: skip
    assert model.w.item() == -15


def test_the_same_settings_are_no_news(tmp_path):
    interrupted(tmp_path, at=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resumed(tmp_path)[0] == -15


def test_other_batches_than_the_checkpoint_s_are_refused(tmp_path):
    """It had read two; a used-up iterator has none, a list may have one."""
    interrupted(tmp_path, at=3)
    for stream, there in ((iter([]), 0), (rows(1), 1)):
        model = Line()
        optimizer = sgd(model, lr=0.5)
        with pytest.raises(ValueError, match=f"had read 2 batches, and here are only {there}"):
            train(model, stream, mean_output, max_steps=4, optimizer=optimizer,
                  checkpoint_dir=tmp_path)  # fmt: skip
        assert optimizer.param_groups[0]["lr"] == 0.5  # not the checkpoint's 1
    resumed(tmp_path)
    history = train(Line(), iter([]), None, max_steps=4, checkpoint_dir=tmp_path)
    assert len(history) == 4  # finished: nothing is left to read


class Rollouts(Counter):
    live = True


def test_a_live_stream_is_resumed_by_its_state_or_not_at_all(tmp_path):
    """Batches 1 and 2, then 4 and 8, none drawn twice: 15. Without a state it could only be drawn
    again, from another model than the first time."""
    model = Line()
    settings = {"optimizer": sgd(model), "schedule": "constant", "max_grad_norm": NO_CLIP}
    for steps in (2, 4):
        stream = Rollouts(lambda n: None)
        train(model, stream, mean_output, max_steps=steps, checkpoint_dir=tmp_path, **settings)
        assert stream.next == steps
    assert model.w.item() == -15

    class Stateless:
        live = True

        def __iter__(self):
            return iter(rows(1, 2))

    train(Line(), Stateless(), mean_output, max_steps=2)
    with pytest.raises(ValueError, match="give it state_dict and load_state_dict, or train"):
        train(Line(), Stateless(), mean_output, max_steps=2, checkpoint_dir=tmp_path / "new")


# --- SIGKILL ------------------------------------------------------------------------------------


class Stream:
    """Batches from a generator whose state is saved with the checkpoint."""

    def __init__(self):
        self.g = torch.Generator().manual_seed(5)

    def state_dict(self):
        return {"g": self.g.get_state()}

    def load_state_dict(self, state):
        self.g.set_state(state["g"])

    def __iter__(self):
        while True:
            yield {"input_ids": torch.randint(0, 17, (2, 8), generator=self.g)}


def noisy_loss(model, batch):
    """Draws from all three of Python's, numpy's and torch's own generators."""
    noise = random.random() + np.random.rand() + torch.rand(1)
    return causal_lm_loss(model, batch) * noise, {"noise": noise}


def the_run(folder: Path, stateful: bool) -> None:
    """Ten steps with everything that has a state; leaves the weights in ``final.pt``."""
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    model = tiny_llama()
    train(
        model, Stream() if stateful else token_batches(20), noisy_loss, max_steps=10,
        optimizer=muon_adamw(model), warmup_steps=3, schedule="trapezoid",
        gradient_accumulation=2, metrics_path=folder / "metrics.csv", checkpoint_dir=folder,
        checkpoint_every=2, evaluate=lambda m, step: {"draw": torch.rand(1)}, evaluate_every=3,
    )  # fmt: skip
    torch.save(model.state_dict(), folder / "final.pt")


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_line(number: int) -> None:
    """SIGKILL before the ``number``-th line of the loop, its checkpoints or its files."""
    watched = {training.__file__, checkpoints.__file__, files.__file__}
    left = [number]

    def trace(frame, event, arg):
        if frame.f_code.co_filename not in watched:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                kill_me()
        return trace

    sys.settrace(trace)


def kill_in_save(number: int) -> None:
    """SIGKILL when half of the ``number``-th checkpoint's bytes are on the disk."""
    save, left = torch.save, [number]

    def half_save(state, file):
        save(state, file)
        if isinstance(file, io.BytesIO):  # only tried whether it can be read again
            return
        left[0] -= 1
        if left[0] == 0:
            file.truncate(file.tell() // 2)
            os.fsync(file.fileno())
            kill_me()

    torch.save = half_save


def fork(folder: Path, stateful: bool, prepare=None) -> int:
    """Run (or go on with) the run in a process of its own; returns its wait status."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            if prepare:
                prepare()
            the_run(folder, stateful)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def drive(folder: Path) -> None:
    """For both kinds of stream: one whole run, and one killed over and over until it is done."""
    torch.set_num_threads(1)
    import accelerate  # noqa: F401  these imports are slow: once, not in every child

    muon_adamw(tiny_llama())
    rng, report = random.Random(0), {}
    for stateful in (True, False):
        name = "stateful" if stateful else "plain"
        whole, killed = folder / name / "whole", folder / name / "killed"
        whole.mkdir(parents=True), killed.mkdir()
        assert fork(whole, stateful) == 0
        kills = [lambda n=n: kill_in_save(n) for n in (2, 1, 2)]
        kills += [lambda n=n: kill_in_line(n) for n in rng.choices(range(20, 250), k=12)]
        count = 0
        for kill in kills:
            status = fork(killed, stateful, kill)
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            count += 1
            if (killed / "metrics.csv").exists():  # the last row may have been half written
                with open(killed / "metrics.csv", "a", encoding="utf-8") as file:
                    file.write("99,0.12")
        if not (killed / "final.pt").exists():
            assert fork(killed, stateful) == 0
        report[name] = count
    print(json.dumps(report))


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """SIGKILL half-way through writing a checkpoint, and before any line of the loop: the weights
    and the metrics (but for the seconds) are those of the run that was left alone."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    result = subprocess.run([sys.executable, __file__, tmp_path], env=environment, text=True,
                            capture_output=True, timeout=600)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert all(count >= 6 for count in json.loads(result.stdout).values()), result.stdout
    for kind in ("stateful", "plain"):
        whole, killed = tmp_path / kind / "whole", tmp_path / kind / "killed"
        a, b = torch.load(whole / "final.pt"), torch.load(killed / "final.pt")
        assert all(torch.equal(a[name], b[name]) for name in a)
        tables = [[{k: v for k, v in r.items() if k != "seconds"} for r in
                   read_csv(f / "metrics.csv")] for f in (whole, killed)]  # fmt: skip
        assert tables[0] == tables[1] and len(tables[0]) == 10


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
