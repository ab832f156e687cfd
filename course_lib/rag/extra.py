"""Libraries of the extra ``rag``: loaded when they are used."""

from importlib import import_module
from types import ModuleType


def library(module: str, use: str) -> ModuleType:
    """Import a module of the extra.

    Args:
        use: what it is for, as the error's first words.

    Raises:
        ImportError: it is not installed; what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{use} needs {module.split('.')[0]}, which comes with the extra rag: "
            "pip install 'course_lib[rag]'."
        ) from error
