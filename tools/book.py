"""Build the book and say where to open it. A warning is an error."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    command = [Path(sys.executable).parent / "jupyter-book", "build", ".", "-W", "--keep-going"]
    result = subprocess.run(
        [sys.executable, *command, "-q"], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    page = ROOT / "_build" / "html" / "index.html"
    if result.returncode or not page.exists():
        print(result.stdout, file=sys.stderr)
        sys.exit("The book was not built: see the warnings above.")
    print(f"The book is ready. Open {page.as_uri()}")


if __name__ == "__main__":
    main()
