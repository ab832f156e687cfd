"""The study of an update's rank: singular values by hand, and a check that a fault fails."""

import pytest
import torch

from course_lib import plotting
from course_lib.studies import codes, load, update_rank
from course_lib.studies.tuning import shipped


def outside(value):
    low, high = load("update_rank").interval_for_a_new_seed("full", "energy 8")
    return not low <= value <= high


def test_energy_by_hand():
    """Singular values 3, 2, 1 of a rotated diagonal: 9 / 14, 13 / 14, all."""
    generator = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    P, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    matrix = Q @ torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ P[:3]
    found = [update_rank.energy(matrix, r) for r in (0, 1, 2, 3, 9)]
    assert found == pytest.approx([0, 9 / 14, 13 / 14, 1, 1], abs=1e-6)
    torch.testing.assert_close(update_rank.cut(matrix, 3), matrix)
    assert torch.linalg.matrix_rank(update_rank.cut(matrix, 1)) == 1
    lost = (matrix - update_rank.cut(matrix, 1)).norm() ** 2
    assert lost.item() == pytest.approx(5, abs=1e-4), "4 + 1 are left out"


def test_rank_zero_is_the_start_and_full_rank_the_tuned_model():
    """Of the linear layers; embeddings and norms stay tuned."""
    start, _ = shipped("instruct")
    tuned = codes.prepared(start, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    none, all_ = (update_rank.with_rank(start, tuned, r) for r in (0, 128))
    name = "blocks.0.attention.q.weight"
    weights = [dict(m.named_parameters())[name] for m in (start, none, tuned, all_)]
    torch.testing.assert_close(weights[1], weights[0])
    torch.testing.assert_close(weights[3], weights[2], atol=1e-5, rtol=0)
    assert torch.equal(none.embed.weight, tuned.embed.weight)
    assert len(update_rank.updates(start, tuned)) == 42


def test_control_updates_that_are_noise_fail_the_check():
    generator = torch.Generator().manual_seed(0)
    assert outside(update_rank.energy(torch.randn(128, 128, generator=generator), 8))


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(update_rank, "shipped", None)
    assert plotting.show(update_rank.draw(load("update_rank")), "lines").alt


@pytest.mark.parametrize("name", ["energy", "random", "correct"])
def test_each_rank_has_every_measure(name):
    for r in update_rank.RANKS:
        assert len(load("update_rank").of("full", f"{name} {r}")) == len(update_rank.SEEDS)
