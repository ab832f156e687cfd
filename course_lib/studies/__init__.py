"""The experiments behind the figures: one file a study, its stored results beside it.

A study is a module with

- ``GRID``: {name of a setting: the keyword arguments that make it},
- ``SEEDS``: the seeds that every setting is run on, at least eight,
- ``run(setting, seed) -> {measure: number}``: one row; ``setting`` is a value of ``GRID``,
- ``draw(results)``: its figure (``plotting``), from the stored results alone,
- ``MODELS``: names of the shipped models that it starts from, e.g. ``("base",)``,
- ``USES``: the functions, classes and modules that its results hang on,
- ``CHECKS``: {setting: (measures)}, cheap rows that tests and the notebook run again; empty where
  no row is cheap, and then ``CHECKED_BY`` names the study whose check runs the same code,
- ``LEAST_SPREAD`` (if need be): {measure: standard deviation below which the spread over the seeds
  is not believed}, e.g. half an item of a test that every seed passed without a mistake.

``python -m course_lib.studies`` runs the rows that are missing. ``load(name)`` reads the stored
ones.
"""

from course_lib.studies.stored import PerSeed, Results, load

__all__ = ["PerSeed", "Results", "load"]
