"""What notebooks need beside the course itself: values that the prose quotes."""


def glue(name: str, value: object) -> None:
    """Keep a value under a name, so that the text can quote it as {glue:text}`name`.

    Writes the output format of ``myst_nb.glue`` without needing the book's tools (Colab has none).

    Args:
        value: shown as ``str(value)``: round and format it first. It is kept as ``repr(value)``, since
            the book evaluates it: without quotes "2,500" would be a pair and "1.00" the number 1.0.
    """
    from IPython.display import display

    mime = "application/papermill.record/text/plain"
    scrapbook = {"mime_prefix": "application/papermill.record/", "name": name}
    display({mime: repr(value)}, raw=True, metadata={"scrapbook": scrapbook})
