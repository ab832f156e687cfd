"""Run studies: ``python -m course_lib.studies [NAME ...]``; all of them without a name."""

import argparse
import sys
from types import ModuleType

from tqdm.auto import tqdm

from course_lib.studies import load, running
from course_lib.studies.stored import from_rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.studies",
        description="Run the rows of studies that are missing or stale, and store them.",
    )
    parser.add_argument("name", nargs="*", help="studies to run; all of them by default")
    parser.add_argument("--list", action="store_true", help="say which are complete or stale")
    parser.add_argument("--again", action="store_true",
                        help="run every row anew, store nothing, and compare with what is stored")
    parser.add_argument("--processes", type=int, default=2, metavar="N",
                        help="processes of one thread each (default: 2)")  # fmt: skip
    args = parser.parse_args(arguments)
    if args.processes < 1:
        parser.error(f"--processes must be at least 1, got {args.processes}")
    names = args.name or running.names()
    try:
        studies = {name: running.module_of(name) for name in names}
    except ValueError as error:
        parser.error(str(error))
    if args.again:
        lines = [line for study in studies.values() for line in again(study, args.processes)]
        sys.exit("\n".join(lines) or None)
    for name, study in studies.items():
        state = running.state(study)
        if args.list:
            print(f"{name:28s}{state}")
        elif state != "complete":
            run(study, args.processes)
    if not args.list:
        print("Every study is complete.")


def run(study: ModuleType, processes: int) -> None:
    """Run one study with a progress bar; rows that are there already count as done."""
    name = study.__name__.split(".")[-1]
    todo, whole = len(running.missing(study)), len(running.grid(study))
    with tqdm(total=whole, initial=whole - todo, desc=name, unit="row") as bar:
        try:
            for row in running.run_missing(study, processes):
                bar.update()
                bar.set_postfix_str(f"{row['setting']}, seed {row['seed']}", refresh=False)
        except KeyboardInterrupt:
            sys.exit(f"\nStopped. The rows of {name} that ended are kept: run it again to go on.")


def again(study: ModuleType, processes: int) -> list[str]:
    """Run every row anew and say which means are no longer what is stored."""
    name = study.__name__.split(".")[-1]
    todo = running.grid(study)
    rows = list(tqdm(running.run_rows(study, todo, processes), total=len(todo), desc=name,
                     unit="row"))  # fmt: skip
    stored = load(name)
    now = from_rows(name, rows, stored.about)
    return [f"{name}: {line}" for line in running.unlike(stored, now)]


if __name__ == "__main__":
    main()
