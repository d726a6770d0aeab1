"""Product types of pins, read from their titles and their queries."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ray_app.base.text import normalize_query, normalize_text

_PLAIN = re.compile(r"[a-z][a-z\-'/]*")
_ACRONYM = re.compile(r"[A-Z]{2,4}")
_FUNCTION_WORDS = frozenset("a an and for from in of on or the to with w x".split())
_UNITS = frozenset("m mm cm pixels ppm dpi sheets pages pcs".split())  # follow numbers, and are no kind of thing


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductTypePin:
    """A pin whose title names its kind."""

    row: int
    phrase: str  # such as "laser toner cartridge"
    title_without: str


def product_type_phrase(title: str) -> tuple[str, str] | None:
    """The phrase that names the kind of thing, and the title without it; None where no such phrase stands out.

    It is the first run of lower-case words (and acronyms among them) after the title's first word, which is a name.
    Writing without case, and titles in capitals, give None: such a catalogue has no warm-up.
    """
    words = normalize_text(title).split()
    start = 1
    while start < len(words):
        end = start
        while end < len(words) and (_PLAIN.fullmatch(words[end]) or _ACRONYM.fullmatch(words[end])):
            end += 1
        while start < end and words[start] in _UNITS:
            start += 1
        run = words[start:end]
        if any(_PLAIN.fullmatch(word) and len(word) >= 3 and word not in _FUNCTION_WORDS for word in run):
            # "cable for printers": the kind ends where the relation begins.
            stop = next((i for i, word in enumerate(run) if word in _FUNCTION_WORDS), len(run))
            phrase = run[:stop]
            if any(_PLAIN.fullmatch(word) and len(word) >= 3 for word in phrase):
                return " ".join(phrase), " ".join([*words[:start], *words[start + stop :]])
        start = max(end, start) + 1
    return None


def find_product_types(titles: Sequence[str | None], min_pins: int) -> list[ProductTypePin]:
    """Pins whose phrase at least `min_pins` pins share; rarer ones are noise."""
    found = [(row, parts) for row, title in enumerate(titles) if title and (parts := product_type_phrase(title))]
    count = Counter(normalize_query(parts[0]) for _, parts in found)
    return [
        ProductTypePin(row=row, phrase=normalize_query(phrase), title_without=rest)
        for row, (phrase, rest) in found
        if count[normalize_query(phrase)] >= min_pins
    ]
