"""Pretraining corpus of the demo's text models, generated from the demo's words.

A document is a pin's texts, a few dictionary entries, or a pin, a query and a verdict that compares them in English,
attribute by attribute ("same: sofa. fits colour red. unknown material velvet"). A verdict says what can be read in
the text, not the ground truth. No grade occurs anywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ray_app.base.text import FIELD_SEPARATOR, LIST_SEPARATOR
from ray_app.demo.concepts import (
    ATTRIBUTES,
    CATEGORY_OF,
    GROUP_OF,
    GROUPS,
    MATERIALS,
    OBJECTS,
    SETTINGS,
    STYLES,
    VISIBLE,
    Concept,
    Request,
    colours_of,
    draw_concept,
)
from ray_app.demo.texts import (
    SHOPS,
    board_title,
    caption,
    description,
    link_description,
    link_title,
    query_text,
    spam_text,
    title,
)
from ray_app.demo.vocabulary import LANGUAGES, vocabulary

HINT_FITS = 0.6  # guessed: users save and click what fits only in part
OUTCOMES = ("same", "near", "kind", "other", "unknown", "fits", "differs")
VERDICT_WORDS = " ".join(OUTCOMES) + " not object colour material style setting is means"


@dataclass(frozen=True, slots=True)
class PinText:
    """A pin's text and the attributes that can be read in it."""

    text: str  # all fields, joined
    readable: frozenset[str]  # names of attributes that it states, `object` among them
    hints: frozenset[tuple[str, str]] = frozenset()
    """(attribute, value) that only boards or searches mention: they often fit the pin, and often do not."""


def word_list() -> list[str]:
    """Every word of the demo, for the tokenizer; languages without spaces are cut into words."""
    lines = [VERDICT_WORDS, *SHOPS, *"0123456789"]
    for obj in OBJECTS:
        concepts = (
            Concept(obj, colour, "", "", place) for colour in colours_of(obj) for place in SETTINGS[CATEGORY_OF[obj]]
        )
        lines.extend(map(caption, concepts))
    for language in LANGUAGES:
        voc = vocabulary(language)
        for nouns in voc.objects.values():
            lines.extend(noun.word for noun in nouns)
        for values in voc.words.values():
            for word in (word for words in values.values() for word in words):
                lines.append(word.bare)
                genders = voc.endings or ("bare",)
                # In Japanese the particle is kept separate, so that a word is the same token in a sentence and in a search.
                lines.extend(voc.inflect(word.phrase, g).removeprefix("" if voc.space else word.bare) for g in genders)
        lines.extend(word for words in voc.categories.values() for word in words)
        patterns = (pattern for patterns in voc.patterns.values() for pattern in patterns)
        lines.extend(pattern.format(np=" ", facts=" ", tags=" ", shop=" ", x=" ") for pattern in patterns)
    return [line.lower() for line in lines]


def entry(rng: np.random.Generator, attribute: str, value: str, language: str) -> str:
    """One of a value's names."""
    voc = vocabulary(language)
    if attribute == "object":
        nouns = voc.objects[value]
        return nouns[int(rng.integers(len(nouns)))].word.lower()
    words = voc.words[attribute][value]
    return words[int(rng.integers(len(words)))].bare.lower()


def all_values() -> list[tuple[str, str]]:
    """(attribute, value) of all that has words."""
    words = vocabulary("en").words
    return [("object", obj) for obj in OBJECTS] + [(name, value) for name in ATTRIBUTES for value in words[name]]


def any_language(rng: np.random.Generator) -> str:
    """One of LANGUAGES, English three times as often: captions and verdicts are in English, so is much of the web."""
    return LANGUAGES[max(0, int(rng.integers(-2, len(LANGUAGES))))]


def any_told(rng: np.random.Generator) -> list[str]:
    """Names of attributes that a text gives away: usually two or so."""
    return [name for name in ATTRIBUTES if rng.random() < 0.45]


def pin_text(rng: np.random.Generator, concept: Concept) -> PinText:
    """A pin's fields joined as ray_app/base/text.py does, some missing, some spam, now and then in two languages."""
    language = any_language(rng)
    foreign = any_language(rng) if rng.random() < 0.2 else language
    parts: list[str] = []
    readable: set[str] = set()
    if rng.random() < 0.75:
        told = any_told(rng)
        parts.append(title(concept, language, rng, told))
        readable.update(told, ("object",))
    if rng.random() < 0.12:
        parts.append(spam_text(language, rng))
    if rng.random() < 0.35:
        # A description may leave the object out; then only its attributes count as read.
        told = any_told(rng)
        parts.append(description(concept, foreign, rng, told))
        readable.update(told)
    if rng.random() < 0.55 or not parts:
        parts.append(caption(concept))
        readable.update(VISIBLE)
    if rng.random() < 0.25:
        told = any_told(rng)
        write = link_title if rng.random() < 0.5 else link_description
        parts.append(write(concept, foreign, rng, told))
        readable.update(told, ("object",))
    hints: set[tuple[str, str]] = set()
    if rng.random() < 0.5:
        boards = [any_board(rng, concept, any_language(rng), hints) for _ in range(int(rng.integers(1, 6)))]
        parts.append(LIST_SEPARATOR.join(boards))
    if rng.random() < 0.3:
        searches = [any_search(rng, concept, any_language(rng), hints) for _ in range(int(rng.integers(1, 5)))]
        parts.append(LIST_SEPARATOR.join(searches))
    return PinText(FIELD_SEPARATOR.join(parts), frozenset(readable), frozenset(hints))


def any_board(rng: np.random.Generator, concept: Concept, language: str, hints: set[tuple[str, str]]) -> str:
    """Title of a board that may hold the pin; attributes that it mentions go to `hints`."""
    subject = str(rng.choice(["", "style", "setting", "colour", "object"], p=[0.25, 0.3, 0.15, 0.1, 0.2]))
    if not subject:
        return board_title(language, rng, category=concept.category)
    value = getattr(concept if rng.random() < HINT_FITS else _relative(rng, concept), subject)
    hints.add((subject, value))
    return board_title(language, rng, category=concept.category, **{subject: value})


def any_search(rng: np.random.Generator, concept: Concept, language: str, hints: set[tuple[str, str]]) -> str:
    """A search that may have led to the pin; what it asks for goes to `hints`."""
    other = _relative(rng, concept)
    asked: dict[str, str] = {}
    for name in ATTRIBUTES:
        if rng.random() < 0.35:
            asked[name] = getattr(concept if rng.random() < HINT_FITS else other, name)
    hints.update(asked.items())
    shown = concept.object if rng.random() < 0.85 else other.object
    return query_text(Request(shown, **asked), language, rng, typo_rate=0.1)


def _relative(rng: np.random.Generator, concept: Concept) -> Concept:
    """Another concept of the same category."""
    objects = [obj for group in GROUPS[concept.category] for obj in group]
    return draw_concept(rng, objects[int(rng.integers(len(objects)))])


def ask(concept: Concept, names: list[str]) -> Request:
    """A request that the concept fulfils."""
    return Request(concept.object, **{name: getattr(concept, name) for name in names})


def any_request(rng: np.random.Generator, concept: Concept, asked_share: float = 0.4) -> Request:
    """Request of a user who is shown the concept: often the same thing, often not; each attribute fits or not."""
    draw = rng.random()
    category = concept.category
    if draw < 0.45:
        obj = concept.object
    elif draw < 0.65:
        obj = str(rng.choice(GROUP_OF[concept.object]))
    elif draw < 0.8:
        obj = str(rng.choice([o for group in GROUPS[category] for o in group]))
    else:
        obj = str(rng.choice(OBJECTS))
    other = draw_concept(rng, obj)
    asked = [name for name in ATTRIBUTES if rng.random() < asked_share]
    fitting = {
        "colour": colours_of(obj),
        "material": MATERIALS[other.category],
        "style": STYLES,
        "setting": SETTINGS[other.category],
    }
    values = {}
    for name in asked:
        same = getattr(concept, name) in fitting[name] and rng.random() < 0.55
        values[name] = getattr(concept if same else other, name)
    return Request(obj, **values)


def verdict(rng: np.random.Generator, request: Request, concept: Concept, readable: frozenset[str]) -> str:
    """Verdict on a pin for a request, from what can be read, in English, in any order."""
    names = {name: value.replace("_", " ") for name, value in request.asked.items()}
    wanted, shown = (obj.replace("_", " ") for obj in (request.object, concept.object))
    if "object" not in readable:
        first = f"unknown object {wanted}"
    elif request.object == concept.object:
        first = f"same {wanted}"
    elif concept.object in GROUP_OF[request.object]:
        first = f"near {shown} not {wanted}"
    elif concept.category == request.category:
        first = f"kind {shown} not {wanted}"
    else:
        first = f"other {shown} not {wanted}"
    rest: list[str] = []
    for name, value in names.items():
        value_shown = getattr(concept, name).replace("_", " ")
        if name not in readable:
            rest.append(f"unknown {name} {value}")
        elif value_shown == value:
            rest.append(f"fits {name} {value}")
        else:
            rest.append(f"differs {name} {value_shown} not {value}")
    said = [first, *(rest[i] for i in rng.permutation(len(rest)))]
    if rng.random() < 0.4:
        said = [said[i] for i in rng.permutation(len(said))]
    return ". ".join(said)


def documents(rng: np.random.Generator, count: int, simple_share: float = 0.0) -> Iterator[tuple[str, str, str]]:
    """(pin text, query, verdict) documents; a text or dictionary entries alone leave query and verdict empty.

    In some documents the verdict begins with a new line, in most it follows the query at once: then the state of the
    query's last token, which a cross-encoder reads, has already compared.

    Args:
        simple_share: Share of them, the first ones, whose pin has a single short text: who learns to read compares
            short texts first.
    """
    values = all_values()
    for number in range(count):
        concept = draw_concept(rng)
        if number < simple_share * count:
            pin = short_text(rng, concept)
            request = any_request(rng, concept, asked_share=0.25)
            query = query_text(request, any_language(rng), rng)
            yield pin.text, query, verdict(rng, request, concept, pin.readable)
            continue
        draw = rng.random()
        if draw < 0.07:
            entries = []
            for i in rng.choice(len(values), 6, replace=False):
                name, value = values[int(i)]
                left, right = (entry(rng, name, value, any_language(rng)) for _ in range(2))
                entries.append(f"{left} = {right}: {name} {value.replace('_', ' ')}")
            yield FIELD_SEPARATOR.join(entries), "", ""
            continue
        pin = pin_text(rng, concept)
        if draw < 0.12:
            yield pin.text, "", ""
            continue
        request = any_request(rng, concept)
        query = query_text(request, any_language(rng), rng, typo_rate=0.05)
        said = verdict(rng, request, concept, pin.readable)
        yield pin.text, query, ("\n" if rng.random() < 0.3 else "") + said


def short_text(rng: np.random.Generator, concept: Concept) -> PinText:
    """A caption, a title or a few words."""
    draw = rng.random()
    if draw < 0.3:
        return PinText(caption(concept), frozenset(VISIBLE))
    told = [name for name in ATTRIBUTES if rng.random() < 0.3]
    language = any_language(rng)
    if draw < 0.6:
        text = title(concept, language, rng, told)
    else:
        text = query_text(ask(concept, told), language, rng)
    return PinText(text, frozenset(("object", *told)))
