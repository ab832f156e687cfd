"""Held-out clusters: each held out once with its kin, asked the same items thrice."""

import pytest

from course_lib.studies import held_out_clusters, load, splits
from course_lib.world.instructions import CLUSTERS, INSTRUCTIONS, KIN, split_clusters


def test_every_cluster_is_held_out_once_and_its_kin_is_not_trained():
    held = [c for s in held_out_clusters.GRID.values() for c in s.get("held_out", [])]
    assert sorted(held) == sorted(CLUSTERS)
    for setting in held_out_clusters.GRID.values():
        out = set(setting.get("held_out", []))
        trained = {INSTRUCTIONS[n].cluster for n in split_clusters(sorted(out))[0]}
        assert not trained & out
        assert not any(set(pair) & out and set(pair) & trained for pair in KIN)


def test_items_hang_on_cluster_and_seed_alone():
    assert held_out_clusters.items("order", 3) == held_out_clusters.items("order", 3)
    assert held_out_clusters.items("order", 3) != held_out_clusters.items("order", 4)
    counts = {c: len(held_out_clusters.items(c, 0)) for c in CLUSTERS}
    assert counts["reasoning"] == 12 and min(counts[c] for c in CLUSTERS if c != "reasoning") >= 36


def test_the_check_fails_in_the_chat_format():
    """The base model answers after Q and A, and not in a format that it never saw."""
    measured = held_out_clusters.accuracies(
        splits.frozen(), held_out_clusters.CHECKS["base"], 8, splits.in_the_chat
    )
    for name, value in measured.items():
        with pytest.raises(AssertionError, match=name):
            load("held_out_clusters").check_live("base", {name: value})


def test_a_mean_over_clusters_is_taken_seed_by_seed():
    results = load("held_out_clusters")
    got = held_out_clusters.mean_over(results, "base", ["words", "order"])
    for seed, value in zip(got.seeds, got.values, strict=True):
        row = results.rows["base"][seed]
        assert value == pytest.approx((row["words"] + row["order"]) / 2)


def test_the_figure_has_three_bars_for_every_cluster():
    axes = held_out_clusters.draw(load("held_out_clusters")).axes[0]
    assert len(axes.patches) == 3 * len(CLUSTERS)
    starred = {text.get_text() for text in axes.get_yticklabels() if "*" in text.get_text()}
    assert starred == {f"{c} *" for c in splits.HELD_OUT}
