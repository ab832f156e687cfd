"""A study of nothing, quick and exact, for the tests of the machinery."""

import time
from pathlib import Path

from course_lib.measuring import cut

MODELS = ("base",)
USES = (cut,)
GRID = {"small": {"size": 1}, "large": {"size": 10}}
SEEDS = range(4)
CHECKS = {"small": ("value",)}


def run(setting, seed):
    """size + seed / 10; waits where a file of its folder says so."""
    if Path("slow").exists():
        time.sleep(0.5)
    return {"value": setting["size"] + seed / 10, "twice": 2 * setting["size"]}


def draw(results):
    return results.settings
