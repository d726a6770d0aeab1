"""Words of the demo world: complete, unambiguous, and silent about what is not told."""

from collections import Counter

import numpy as np
import pytest

from ray_app.base.text import tokenize
from ray_app.demo.concepts import (
    ATTRIBUTES,
    CATEGORY_OF,
    COLOURS,
    MATERIALS,
    OBJECTS,
    SETTINGS,
    STYLES,
    Concept,
    Request,
    draw_concept,
)
from ray_app.demo.texts import (
    board_title,
    caption,
    description,
    link_description,
    link_title,
    query_text,
    spam_text,
    title,
)
from ray_app.demo.vocabulary import LANGUAGES, Vocabulary, vocabulary

VALUES = {
    "colour": set(COLOURS),
    "material": {value for values in MATERIALS.values() for value in values},
    "style": set(STYLES),
    "setting": {value for values in SETTINGS.values() for value in values},
}
SOFA = Concept(object="sofa", colour="red", material="velvet", style="boho", setting="living_room")


def names(text: str, surface: str, language: str) -> bool:
    """Whether a text contains a word or phrase; whole words, except in Japanese, which does not separate them."""
    if language == "ja":
        return surface in text
    words, wanted = tokenize(text), tokenize(surface)
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))


def surfaces(voc: Vocabulary, attribute: str, value: str) -> set[str]:
    """Every form in which a text of a language can name an attribute's value (`object` included), as written."""
    if attribute == "object":
        return {noun.word for noun in voc.objects[value]}
    genders = ("bare", *voc.endings)
    words = voc.words[attribute][value]
    return {word.bare for word in words} | {voc.inflect(word.phrase, gender) for word in words for gender in genders}


def named(text: str, attribute: str, language: str) -> set[str]:
    """Values of an attribute that a text names."""
    voc = vocabulary(language)
    return {
        value
        for value in VALUES[attribute]
        if any(names(text, surface, language) for surface in surfaces(voc, attribute, value))
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_id_has_words(language: str) -> None:
    voc = vocabulary(language)
    assert set(voc.objects) == set(OBJECTS)
    assert all(len({noun.word for noun in nouns}) >= 2 for nouns in voc.objects.values())
    assert {attribute: set(values) for attribute, values in voc.words.items()} == VALUES
    assert set(voc.categories) == set(CATEGORY_OF.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_ids_share_a_surface(language: str) -> None:
    """Else a request could not be told from another, and the truth would call one of them wrong."""
    voc = vocabulary(language)
    ids = [("object", obj) for obj in OBJECTS] + [(name, value) for name, values in VALUES.items() for value in values]
    counts = Counter(surface.lower() for name, value in ids for surface in surfaces(voc, name, value))
    assert [surface for surface, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("write", [title, description, link_title, link_description])
def test_texts_name_what_is_told_and_nothing_else(write, language: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(60):
        concept = draw_concept(rng)
        told = [name for name in ATTRIBUTES if rng.random() < 0.5]
        text = write(concept, language, rng, told)
        found = {name: named(text.replace("_", " "), name, language) for name in ATTRIBUTES}
        assert found == {name: {getattr(concept, name)} if name in told else set() for name in ATTRIBUTES}, text


@pytest.mark.parametrize("language", LANGUAGES)
def test_titles_name_the_object(language: str) -> None:
    rng = np.random.default_rng(3)
    for obj in OBJECTS:
        text = title(draw_concept(rng, obj), language, rng, ATTRIBUTES)
        assert any(
            names(text.lower(), word.lower(), language) for word in surfaces(vocabulary(language), "object", obj)
        )


@pytest.mark.parametrize("language", LANGUAGES)
def test_spam_and_boards_of_no_subject_name_no_attribute(language: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        text = spam_text(language, rng) + " " + board_title(language, rng)
        assert [name for name in ATTRIBUTES if named(text, name, language)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_queries_name_all_that_is_asked(language: str) -> None:
    rng = np.random.default_rng(11)
    for _ in range(60):
        concept = draw_concept(rng)
        asked = {name: getattr(concept, name) for name in ATTRIBUTES if rng.random() < 0.5}
        text = query_text(Request(concept.object, **asked), language, rng)
        assert text == text.lower()
        assert {name: named(text, name, language) for name in ATTRIBUTES} == {
            name: {asked[name]} if name in asked else set() for name in ATTRIBUTES
        }, text


@pytest.mark.parametrize("language", LANGUAGES)
def test_different_requests_make_different_queries(language: str) -> None:
    rng = np.random.default_rng(13)
    requests_of: dict[str, set[Request]] = {}
    for _ in range(1500):
        concept = draw_concept(rng)
        request = Request(concept.object, **{n: getattr(concept, n) for n in ATTRIBUTES if rng.random() < 0.3})
        requests_of.setdefault(query_text(request, language, rng), set()).add(request)
    assert [text for text, requests in requests_of.items() if len(requests) > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_same_generator_writes_the_same_texts(language: str) -> None:
    def write(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        texts = [f(SOFA, language, rng, ATTRIBUTES) for f in (title, description, link_title, link_description)]
        texts.append(board_title(language, rng, category="home", style="boho", setting="living_room", colour="red"))
        return [*texts, query_text(Request("sofa", "red"), language, rng, typo_rate=0.5), spam_text(language, rng)]

    assert write(1) == write(1)
    assert write(1) != write(2)


def test_captions_name_what_can_be_seen() -> None:
    assert caption(SOFA) == "a red sofa in a living room"
    assert caption(Concept("boots", "orange", "wool", "boho", "snow")) == "orange boots in the snow"
    captions = {
        caption(Concept(obj, colour, "", "", setting))
        for obj, category in CATEGORY_OF.items()
        for colour in COLOURS
        for setting in SETTINGS[category]
    }
    assert len(captions) == len(OBJECTS) * len(COLOURS) * 4
    assert max(len(text.split()) for text in captions) <= 12


def test_typos_change_queries_but_not_japanese() -> None:
    rng = np.random.default_rng(17)
    request = Request("sofa", "red")
    clean = {query_text(request, "en", np.random.default_rng(seed)) for seed in range(200)}
    typed = {query_text(request, "en", rng, typo_rate=1.0) for _ in range(50)}
    assert len(clean) == 4
    assert not typed & clean
    japanese = query_text(request, "ja", rng, typo_rate=1.0)
    assert any(word in japanese for word in surfaces(vocabulary("ja"), "object", "sofa"))


def test_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="no words for language 'tlh'"):
        vocabulary("tlh")
