"""The companion package of the course "LLM Development".

The names below are loaded when they are first used, so ``import course_lib`` is quick.
"""

from importlib import import_module

__version__ = "0.1.0"
_PUBLIC = {
    "device": "course_lib.runtime",
    "generate": "course_lib.generation",
    "load_model": "course_lib.shipped",
    "model_path": "course_lib.shipped",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'course_lib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
