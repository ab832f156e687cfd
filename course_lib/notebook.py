"""What notebooks need beside the course itself: values that the prose quotes."""


def glue(name: str, value: object) -> None:
    """Keep a value under a name, so that the text can quote it as {glue:text}`name`.

    Writes the output format of ``myst_nb.glue`` without needing the book's tools (Colab has none).

    Args:
        value: shown as ``str(value)``: round and format it first. Kept is ``repr(value)``, for the
            book evaluates it: "2,500" without quotes would be a pair, and "1.00" the number 1.0.
    """
    from IPython.display import display

    mime = "application/papermill.record/text/plain"
    scrapbook = {"mime_prefix": "application/papermill.record/", "name": name}
    display({mime: repr(value)}, raw=True, metadata={"scrapbook": scrapbook})
