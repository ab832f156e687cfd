"""Which Python runs the notebooks: this one, whatever else the shell has been set up for.

Jupyter looks for the kernel ``python3`` in ``JUPYTER_PATH`` first, then in the user's home if the
environment is not the user's own, and only then beside the Python that asks: the kernel of another
Jupyter would run our notebooks with its packages. And IPython runs the file of ``PYTHONSTARTUP``,
whose names and outputs would be the notebook's.
"""

import os
import sys
from collections.abc import MutableMapping


def use_this_python(environment: MutableMapping[str, str] = os.environ) -> None:
    """Kernels that are started from now on are of this Python. (For ``make`` the Makefile does it.)

    Args:
        environment: what the kernels inherit; changed in place.
    """
    environment["JUPYTER_PATH"] = os.path.join(sys.prefix, "share", "jupyter")
    environment.pop("PYTHONSTARTUP", None)
