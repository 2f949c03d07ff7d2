"""A few original paragraphs in four languages and a little Python, to trace running text with."""

import re
from functools import cache
from importlib.resources import files

_FILES = {"en": ("en.txt", "python.txt"), "de": ("de.txt",), "fr": ("fr.txt",), "es": ("es.txt",)}


@cache
def paragraphs(lang: str) -> tuple[tuple[str, ...], ...]:
    """Each paragraph as its sentences (or lines of code), the white space before them kept."""
    out = []
    for name in _FILES[lang]:
        start, cut = ("\n", r"(?=\n)") if name == "python.txt" else (" ", r"(?<=\.)(?= )")
        for block in files(__name__).joinpath(name).read_text("utf-8").strip().split("\n\n"):
            out.append(tuple(s for s in re.split(cut, start + block) if s))
    return tuple(out)
