"""Texts of pins, shops and spammers about a concept, and query texts: eight languages, several patterns each.

A text names only the attributes in `told`; titles always name the object. Everything is drawn from `rng` alone.
"""

from collections.abc import Collection, Sequence
from typing import TypeVar

import numpy as np

from ray_app.demo.concepts import ATTRIBUTES, Concept, Request
from ray_app.demo.vocabulary import Noun, Vocabulary, Word, vocabulary

T = TypeVar("T")

SENTENCE_ORDER = ("setting", "style", "colour", "material")  # before the noun; after it the setting comes last
SHOPS = ("Lumo", "Nordhaus", "Kiki & Co", "Casanova", "Pepperino", "Mira Shop", "Tiny Fox", "Olivia's")
KEYWORD_SHARE = 0.6  # of queries that are words in a row; the others are phrases as in a sentence. Guessed.

_CAPTION_OBJECTS = {
    "t_shirt": "t-shirt", "ice_cream": "ice cream", "hot_air_balloon": "hot air balloon", "beach_umbrella": "parasol",
}  # fmt: skip
_CAPTION_PLURALS = ("sneakers", "boots")
_CAPTION_PLACES = {
    "living_room": "in a living room", "bedroom": "in a bedroom", "garden": "in a garden", "office": "in an office",
    "kitchen": "in a kitchen", "cafe": "in a cafe", "party": "at a party", "street": "on a street",
    "beach": "on a beach", "snow": "in the snow", "mountains": "in the mountains", "lake": "by a lake",
    "city": "in a city",
}  # fmt: skip


def caption(concept: Concept) -> str:
    """Caption in English: "a red sofa in a living room". One pattern, at most 12 words."""
    name = _CAPTION_OBJECTS.get(concept.object, concept.object)
    article = "" if concept.object in _CAPTION_PLURALS else "an " if concept.colour[0] in "aeiou" else "a "
    return f"{article}{concept.colour} {name} {_CAPTION_PLACES[concept.setting]}"


def title(concept: Concept, language: str, rng: np.random.Generator, told: Collection[str]) -> str:
    """A title that names the object and the attributes in `told`."""
    voc = vocabulary(language)
    phrase = _noun_phrase(voc, concept.object, _told(concept, told), rng)
    return _cased(_pick(voc.patterns["titles"], rng).format(np=phrase), language, rng)


def description(concept: Concept, language: str, rng: np.random.Generator, told: Collection[str]) -> str:
    """A sentence or two that name the attributes in `told`; half of them leave the object out."""
    voc = vocabulary(language)
    values = _told(concept, told)
    if rng.random() < 0.5:
        phrase = _noun_phrase(voc, concept.object, values, rng)
        return _capitalized(_pick(voc.patterns["descriptions"], rng).format(np=phrase))
    if not values:
        return _pick(voc.patterns["nothing"], rng)
    bare = [_pick(voc.words[name][value], rng).bare for name, value in values.items()]
    bare = [bare[i] for i in rng.permutation(len(bare))]
    tags = " ".join(f"#{word.replace(' ', '_')}" for word in bare)
    return _pick(voc.patterns["facts"], rng).format(facts=", ".join(bare), tags=tags)


def link_title(concept: Concept, language: str, rng: np.random.Generator, told: Collection[str]) -> str:
    """Title of the page that a pin leads to: a shop's or a blog's."""
    return _link_text("link_titles", concept, language, rng, told)


def link_description(concept: Concept, language: str, rng: np.random.Generator, told: Collection[str]) -> str:
    """Description of the page that a pin leads to."""
    return _link_text("link_descriptions", concept, language, rng, told)


def board_title(
    language: str, rng: np.random.Generator, category: str | None = None, object: str | None = None,
    style: str | None = None, setting: str | None = None, colour: str | None = None,
) -> str:  # fmt: skip
    """Name of a board about the object if there is one, else the setting, else the category; None: of no subject at all.

    Style and colour, if given, are named too.
    """
    voc = vocabulary(language)
    if object is not None:
        given = {"style": style, "setting": setting, "colour": colour}
        subject = _noun_phrase(voc, object, {name: value for name, value in given.items() if value is not None}, rng)
    else:
        subjects: list[str] = []
        if setting is not None:
            subjects.append(_pick(voc.words["setting"][setting], rng).bare)
        elif category is not None:
            subjects.append(_pick(voc.categories[category], rng))
        if style is not None:
            subjects.append(_pick(voc.words["style"][style], rng).bare)
        if colour is not None:
            subjects.append(_pick(voc.words["colour"][colour], rng).bare)
        if not subjects:
            return _pick(voc.patterns["any_boards"], rng)
        # Words side by side need no agreement: "Wohnzimmer Boho", "cucina + vintage".
        subject = _pick((" ", " + ", " | "), rng).join(subjects)
    return _cased(_pick(voc.patterns["boards"], rng).format(x=subject), language, rng)


def query_text(request: Request, language: str, rng: np.random.Generator, typo_rate: float = 0.0) -> str:
    """Query text of a request: lower case, words in a row or a short phrase.

    Args:
        typo_rate: Share of queries with one letter dropped, doubled or swapped (in Latin scripts).
    """
    voc = vocabulary(language)
    asked = request.asked
    if rng.random() >= KEYWORD_SHARE:
        text = _noun_phrase(voc, request.object, asked, rng)
    else:
        noun = _pick(voc.objects[request.object], rng)
        before: list[str] = []
        after: list[str] = []
        for name in SENTENCE_ORDER[1:]:  # a setting is a word of its own at the end: "red sofa living room"
            if name in asked:
                word = _pick(voc.words[name][asked[name]], rng)
                is_adjective = voc.inflect(word.phrase, "bare") == word.bare
                text = voc.inflect(word.phrase, noun.gender) if is_adjective else word.bare
                (after if word.follows or not is_adjective else before).append(text)
        if "setting" in asked:
            after.append(_pick(voc.words["setting"][asked["setting"]], rng).bare)
        text = " ".join([*before, noun.word, *after])
    text = text.lower()
    return _with_typo(text, rng) if rng.random() < typo_rate else text


def spam_text(language: str, rng: np.random.Generator) -> str:
    """Spam text without information about the pin."""
    voc = vocabulary(language)
    text = _pick(voc.patterns["spam"], rng)
    if rng.random() < 0.5:
        text = f"{text} {_pick(voc.patterns['spam'], rng)}"
    return text if rng.random() < 0.5 else f"{text} {_pick(('🔥🔥🔥', '!!!', '👉👉', '$$$', '💯'), rng)}"


def _told(concept: Concept, told: Collection[str]) -> dict[str, str]:
    return {name: getattr(concept, name) for name in ATTRIBUTES if name in told}


def _noun_phrase(voc: Vocabulary, obj: str, values: dict[str, str], rng: np.random.Generator) -> str:
    """An object with attributes, in the word order of the language."""
    noun: Noun = _pick(voc.objects[obj], rng)
    before: list[str] = []
    after: list[str] = []
    last: list[str] = []
    for name in SENTENCE_ORDER:
        if name not in values:
            continue
        word: Word = _pick(voc.words[name][values[name]], rng)
        text = voc.inflect(word.phrase, noun.gender)
        (before if not word.follows else last if name == "setting" else after).append(text)
    return voc.space.join([*before, noun.word, *after, *last])


def _link_text(kind: str, concept: Concept, language: str, rng: np.random.Generator, told: Collection[str]) -> str:
    voc = vocabulary(language)
    phrase = _noun_phrase(voc, concept.object, _told(concept, told), rng)
    return _capitalized(_pick(voc.patterns[kind], rng).format(np=phrase, shop=_pick(SHOPS, rng)))


def _cased(text: str, language: str, rng: np.random.Generator) -> str:
    """Vary the case as users do in titles: mostly a capital first letter, some in small letters, in English some Title Case."""
    draw = rng.random()
    if draw < 0.15:
        return text.lower()
    if language == "en" and draw < 0.4:
        return " ".join(_capitalized(word) if len(word) > 3 else word for word in _capitalized(text).split(" "))
    return _capitalized(text)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _with_typo(text: str, rng: np.random.Generator) -> str:
    """One letter of a Latin word dropped, doubled or swapped with its neighbour; not its first or last."""
    places = [
        i for i in range(1, len(text) - 2) if all(char.isalpha() and ord(char) < 0x250 for char in text[i - 1 : i + 3])
    ]
    if not places:
        return text
    i = int(rng.choice(places))
    kind = int(rng.integers(3))
    middle = ("", text[i] * 2, text[i + 1] + text[i])[kind]
    return text[:i] + middle + text[i + (2 if kind == 2 else 1) :]


def _pick(items: Sequence[T], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]
