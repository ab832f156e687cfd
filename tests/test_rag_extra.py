"""Libraries of the extra: loaded, or said what to install."""

import sys

import pytest

from course_lib.rag.extra import library
from course_lib.rag.lexical import BM25, TFIDF


def test_a_module_is_what_an_import_gives():
    import json.decoder

    assert library("json.decoder", "A test") is json.decoder


@pytest.mark.parametrize(
    ("use", "module", "call"),
    [
        ("BM25", "bm25s", lambda: BM25().fit(["a"])),
        ("TF-IDF", "sklearn", lambda: TFIDF().fit(["a"])),
    ],
)
def test_a_missing_library_is_told_with_its_extra(monkeypatch, use, module, call):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, f"{module}.feature_extraction.text", None)
    with pytest.raises(ImportError, match=rf"{use} needs {module}, .*'course_lib\[rag\]'"):
        call()
