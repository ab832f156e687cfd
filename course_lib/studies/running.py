"""Running a study: the rows that are missing, each kept as it ends, and the digest of its code.

Results that no longer fit their study's code or its models are stale: they are left where they are
until a whole new set has been made beside them, row by row (``results/NAME.json.rows``).
"""

import ast
import hashlib
import importlib
import inspect
import json
import math
import pkgutil
import platform
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from types import ModuleType

from course_lib.files import read_text, write_text
from course_lib.measuring import mean_interval
from course_lib.shipped import model_path
from course_lib.studies.stored import FALSE_ALARMS, Results

MACHINERY = {"__main__", "guests", "running", "splits", "stored", "sums", "tuning"}
"""Modules of this folder that are no studies."""
RESULTS = Path(__file__).parent / "results"


def names() -> list[str]:
    """Every study of the package."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(set(found) - MACHINERY)


def module_of(name: str) -> ModuleType:
    """The study's module.

    Raises:
        ValueError: there is no such study; the message lists them.
    """
    if name not in names():
        raise ValueError(f"There is no study {name!r}. There are: {', '.join(names())}.")
    return importlib.import_module(f"course_lib.studies.{name}")


# --- where results come from --------------------------------------------------------------------


def _without_remarks(source: str) -> str:
    """Code without blank lines and lines that are only a comment: editing those changes nothing."""
    lines = (line.rstrip() for line in source.splitlines())
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))


def _changes_no_row(node: ast.stmt) -> bool:
    """Whether a statement of a study only says how rows are drawn, described or checked."""
    match node:
        case ast.FunctionDef(name=name):
            return name.startswith("draw")
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name in {"CHECKS", "CHECKED_BY", "LEAST_SPREAD"}
    return False


def _code_of(study: ModuleType) -> str:
    """The module's code but for what changes no row: docstring, ``draw...``, what is checked."""
    source = inspect.getsource(study)
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if _changes_no_row(node):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return _without_remarks("\n".join(lines))


def digest(study: ModuleType) -> str:
    """Fingerprint of the study's own code and of what it names in ``USES``."""
    parts = [_code_of(study), *(_without_remarks(inspect.getsource(used)) for used in study.USES)]
    return hashlib.sha256("\n\n".join(parts).encode("utf-8")).hexdigest()[:16]


def checksums(study: ModuleType) -> dict[str, str]:
    """sha256 of the weights of the models it starts from."""
    files = {name: model_path(name) / "model.safetensors" for name in study.MODELS}
    return {n: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for n, file in files.items()}


def origin(study: ModuleType) -> dict:
    """What decides whether results still fit: digest and models."""
    return {"digest": digest(study), "models": checksums(study)}


def _remarks(study: ModuleType) -> dict:
    """What is stored for the reader of the results and changes no row."""
    return {"least_spread": getattr(study, "LEAST_SPREAD", {})}


def grid(study: ModuleType) -> list[tuple[str, int]]:
    """(setting, seed) of every row, seed by seed: a run that is stopped has whole seeds."""
    return [(setting, seed) for seed in study.SEEDS for setting in study.GRID]


def state(study: ModuleType) -> str:
    """``"complete"``, or how many rows are missing; stale ones count as missing, and it says so."""
    lacking, file = len(missing(study)), _file(study)
    stored = json.loads(read_text(file)) if file.is_file() else None
    if not lacking and stored:
        fits = _fits(stored, _remarks(study))
        return "complete" if fits else "LEAST_SPREAD is not the stored one"
    made = stored and not _fits(stored, origin(study))
    return f"{lacking} of {len(grid(study))} rows missing" + (", results are stale" if made else "")


# --- rows ---------------------------------------------------------------------------------------


def _file(study: ModuleType) -> Path:
    return RESULTS / f"{study.__name__.split('.')[-1]}.json"


def _kept_file(study: ModuleType) -> Path:
    return RESULTS / f"{_file(study).name}.rows"


def _fits(content: dict, now: dict) -> bool:
    return {key: content.get(key) for key in now} == now


def run_row(module: str, setting: str, seed: int) -> dict:
    """One row of a study, on this process's one thread."""
    import torch

    torch.set_num_threads(1)
    study = importlib.import_module(module)
    started = time.process_time()
    measures = study.run(study.GRID[setting], seed)
    return {"setting": setting, "seed": seed,
            "measures": {key: float(value) for key, value in measures.items()},
            "seconds": round(time.process_time() - started, 2)}  # fmt: skip


def kept_rows(study: ModuleType) -> list[dict]:
    """The rows that fit the study as it is now: of a run that was stopped, and of its results."""
    now, wanted, rows = origin(study), set(grid(study)), {}
    for file in (_file(study), _kept_file(study)):
        if file.is_file() and _fits(content := json.loads(read_text(file)), now):
            rows |= {(row["setting"], row["seed"]): row for row in content["rows"]}
    return [row for key, row in rows.items() if key in wanted]


def missing(study: ModuleType) -> list[tuple[str, int]]:
    """(setting, seed) of the rows that have to be run."""
    have = {(row["setting"], row["seed"]) for row in kept_rows(study)}
    return [row for row in grid(study) if row not in have]


def run_rows(
    study: ModuleType, todo: Sequence[tuple[str, int]], processes: int = 2
) -> Iterator[dict]:
    """Run rows and yield each as it ends.

    Args:
        processes: of one thread each; on two cores two of one thread beat one of two.
    """
    with ProcessPoolExecutor(processes, mp_context=_spawn()) as pool:
        runs = [pool.submit(run_row, study.__name__, setting, seed) for setting, seed in todo]
        try:
            for run in as_completed(runs):
                yield run.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_missing(study: ModuleType, processes: int = 2) -> Iterator[dict]:
    """Run what is missing and yield each row as it ends; a run that is killed goes on later."""
    rows, now = kept_rows(study), origin(study)  # as the code is when the rows are begun
    _save(study, _kept_file(study), rows, now)
    for row in run_rows(study, missing(study), processes):
        rows.append(row)
        _save(study, _kept_file(study), rows, now)
        yield row
    _save(study, _file(study), rows, now)
    _kept_file(study).unlink()


def unlike(results: Results, again: Results) -> list[str]:
    """Measures whose mean is another one when all rows are run again, on whatever machine.

    Both means are of n seeds, so their difference has the standard error s · √(2/n). The level is
    divided by the number of measures.
    """
    pairs = [(setting, measure) for setting in results.settings
             for measure in results.of_all(setting)]  # fmt: skip
    different = []
    for setting, measure in pairs:
        before, now = results.of(setting, measure), again.of(setting, measure)
        _, low, high = mean_interval(before.values, 1 - FALSE_ALARMS / len(pairs))
        allowed = math.sqrt(2) * (high - low) / 2 + results.least_spread(measure)
        if not abs(now.mean - before.mean) <= allowed:
            different.append(f"{setting}, {measure}: {before.mean:.4g} stored, {now.mean:.4g} now")
    return different


def _spawn():
    import multiprocessing

    return multiprocessing.get_context("spawn")  # a forked process inherits torch's threads


def _save(study: ModuleType, file: Path, rows: list[dict], now: dict) -> None:
    order = {key: place for place, key in enumerate(grid(study))}
    rows = sorted(rows, key=lambda row: order[row["setting"], row["seed"]])
    content = {**now, "versions": _versions(), "processor": _processor(),
               "seconds": round(sum(row["seconds"] for row in rows), 1),
               **_remarks(study)}  # fmt: skip
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    head = json.dumps(content, indent=1, ensure_ascii=False)[:-2]
    RESULTS.mkdir(exist_ok=True)
    write_text(file, f'{head},\n "rows": [\n{lines}\n ]\n}}\n')


def _versions() -> dict[str, str]:
    return {n: metadata.version(n).split("+")[0] for n in ("torch", "transformers", "numpy")} | {
        "python": platform.python_version()
    }


def _processor() -> str:
    """The vector instructions that the kernels used, e.g. ``"AVX2"``, and the machine."""
    import torch

    kernels = torch.backends.cpu.get_cpu_capability()
    return re.sub(r"\s+", " ", f"{platform.machine()} {kernels}")
