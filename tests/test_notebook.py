"""``glue`` writes what ``myst_nb.glue`` writes, without needing it."""

import subprocess
import sys

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from course_lib.notebook import glue


@pytest.fixture
def shell():
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def displayed(call) -> tuple[dict, dict]:
    """Data and metadata of the one thing that the call shows."""
    with capture_output() as captured:
        call()
    (output,) = captured.outputs
    return output.data, output.metadata


@pytest.mark.parametrize("value", [3, 0.25, None, "12 %", "2,500"])
def test_the_same_output_as_myst_nb(shell, value):
    from myst_nb import glue as myst_glue

    ours = displayed(lambda: glue("loss", value))
    assert ours == displayed(lambda: myst_glue("loss", value, display=False))
    assert ours[1]["scrapbook"]["name"] == "loss"


@pytest.mark.parametrize("value", ["2,500", "1.00", "12 %", "layer 2, head 1"])
def test_the_book_shows_a_text_as_it_was_formatted(shell, value):
    """It was once shown as (2, 500) and as 1.0."""
    from myst_nb.core.variables import format_plain_text

    data, _ = displayed(lambda: glue("share", value))
    assert [format_plain_text(text, "") for text in data.values()] == [value]



def test_the_books_tools_are_not_imported():
    code = "import sys, course_lib.notebook as n; n.glue('a', 1); print('myst_nb' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == "False"
