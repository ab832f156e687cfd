"""What a study has measured, as notebooks and claims read it. Needs no torch."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources

from course_lib.measuring import prediction_interval

FALSE_ALARMS = 0.001
"""How often a whole test run may fail a live check although nothing is broken."""
CHECKS_IN_A_RUN = 80
"""At least as many live checks as one test run makes, over which ``FALSE_ALARMS`` is divided."""


@dataclass(frozen=True)
class PerSeed:
    """One number a seed. Sums, differences and quotients are taken seed by seed.

    Example:
        >>> a, b = PerSeed((0, 1), (0.5, 0.75)), PerSeed((0, 1), (0.25, 0.5))
        >>> (a - b).values
        (0.25, 0.25)
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    study: str = ""

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self):
        return iter(self.values)

    def _with(self, other: "PerSeed | float", operation: Callable) -> "PerSeed":
        if isinstance(other, PerSeed) and other.seeds != self.seeds:
            raise ValueError(f"Seeds {self.seeds} and {other.seeds} cannot be paired.")
        others = other.values if isinstance(other, PerSeed) else [other] * len(self)
        return PerSeed(self.seeds, tuple(map(operation, self.values, others)), self.study)

    def __add__(self, other):
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other):
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other):
        return self._with(other, lambda a, b: a * b)

    def __truediv__(self, other):
        return self._with(other, lambda a, b: a / b)


@dataclass(frozen=True)
class Results:
    """The stored rows of a study.

    ``rows[setting][seed]`` is {measure: number}.
    """

    name: str
    rows: dict[str, dict[int, dict[str, float]]]
    about: dict = field(default_factory=dict)
    """digest, models, versions, processor, seconds, least_spread."""

    @property
    def settings(self) -> list[str]:
        return list(self.rows)

    def of(self, setting: str, measure: str) -> PerSeed:
        """A measure of a setting, one number a seed.

        Raises:
            ValueError: the study has no such setting or measure; the message lists what it has.
        """
        if setting not in self.rows:
            raise ValueError(f"{self.name} has no setting {setting!r}, only {self.settings}.")
        rows = self.rows[setting]
        if any(measure not in row for row in rows.values()):
            have = sorted(set.intersection(*(set(row) for row in rows.values())))
            raise ValueError(f"{setting!r} of {self.name} has no measure {measure!r}: {have}.")
        return PerSeed(tuple(rows), tuple(row[measure] for row in rows.values()), self.name)

    def of_all(self, setting: str) -> dict[str, PerSeed]:
        """Every measure of a setting."""
        first = next(iter(self.rows[setting].values()))
        return {measure: self.of(setting, measure) for measure in first}

    def least_spread(self, measure: str) -> float:
        """Standard deviation below which the spread over the seeds is not believed."""
        return self.about.get("least_spread", {}).get(measure, 0.0)

    def gap(self, setting: str, other: str, measure: str) -> PerSeed:
        """How much more of the measure the first setting has than the second, seed by seed."""
        return self.of(setting, measure) - self.of(other, measure)

    def interval_for_a_new_seed(self, setting: str, measure: str) -> tuple[float, float]:
        """Where one more seed falls but in ``FALSE_ALARMS`` of all test runs (Bonferroni)."""
        level = 1 - FALSE_ALARMS / CHECKS_IN_A_RUN
        values = self.of(setting, measure).values
        return prediction_interval(values, level, self.least_spread(measure))

    def check_live(self, setting: str, measured: dict[str, float]) -> None:
        """Assert that a run made just now is one more row of this study.

        Args:
            measured: {measure: number} of one run of this setting.

        Raises:
            AssertionError: a number lies outside its prediction interval.
        """
        for measure, value in measured.items():
            low, high = self.interval_for_a_new_seed(setting, measure)
            assert low <= value <= high, (
                f"{measure} of {setting!r} is {value:.4g}; the study {self.name} predicts "
                f"{low:.4g} to {high:.4g}. Either the method is broken, or the study is old."
            )
        print(f"as the study {self.name} predicts: {', '.join(measured)}")


def load(name: str) -> Results:
    """The stored results of a study, which the package ships.

    Raises:
        FileNotFoundError: it was never run; the message says how to.
    """
    file = resources.files("course_lib.studies") / "results" / f"{name}.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"The study {name!r} has no stored results: run python -m course_lib.studies {name}."
        )
    return read(name, file.read_text(encoding="utf-8"))


def read(name: str, text: str) -> Results:
    """Results from the text of their file."""
    content = json.loads(text)
    return from_rows(name, content.pop("rows"), content)


def from_rows(name: str, rows: list[dict], about: dict) -> Results:
    """Results of rows as ``running.run_row`` gives them, in any order."""
    table: dict[str, dict[int, dict[str, float]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        table.setdefault(row["setting"], {})[row["seed"]] = row["measures"]
    return Results(name, table, about)
