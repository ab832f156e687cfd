"""Shards of a stream made by several processes, in the order in which one would make them."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from itertools import islice


def in_order(make: Callable, jobs: Iterable, processes: int) -> Iterator:
    """``make`` of each job, one after the other; the same for any number of processes.

    Args:
        make: a pure function that can be pickled, such as a ``partial`` of one in a module. What it
            needs is an argument and not the state of its module, or streams would share it.
        jobs: may be endless: a few are taken at a time.
        processes: 1 makes the shards here, more in processes of their own.
    """
    jobs = iter(jobs)
    if processes <= 1:
        yield from map(make, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        while batch := list(islice(jobs, 8 * processes)):  # imap alone would run through all jobs
            yield from pool.imap(make, batch)
