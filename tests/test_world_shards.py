"""Shards over processes: in order, no more than a few ahead, and as one process makes them."""

from itertools import count, islice

import pytest

from course_lib.world.shards import in_order


@pytest.mark.parametrize("processes", [1, 2])
def test_shards_come_in_the_order_of_their_jobs(processes):
    """More than the 8 a process that are taken at a time; -3 has the absolute value 3."""
    assert list(in_order(abs, range(-20, 0), processes)) == list(range(20, 0, -1))


def test_of_endless_jobs_a_few_are_taken():
    taken = []
    jobs = (taken.append(n) or n for n in count())
    assert list(islice(in_order(abs, jobs, 2), 3)) == [0, 1, 2] and len(taken) == 16
