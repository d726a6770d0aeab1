"""The demo world's words in eight languages, read from `words/<language>.yaml`.

Notation of those files:
- An object is `word`, or `gender word` in languages with agreement (m, f, n; mp, fp: used in the plural).
- An attribute is `word`, or `bare=phrase` where a list of words and a sentence need different forms (`Samt=_aus Samt`).
- Agreement: a final `+` becomes the language's ending of the noun's gender (`rot+`: rotes Sofa); forms that do not
  follow it are written out, `singular/plural` or `m/f/mp/fp`.
- A phrase with a leading `_` stands after the noun. In languages with `adjectives: after` all do.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "de", "fr", "es", "pt", "it", "ja", "hi")

_WRITTEN_OUT = {"m": 0, "n": 0, "f": 1, "mp": 2, "np": 2, "fp": 3, "bare": 0}


@dataclass(frozen=True, slots=True)
class Noun:
    """One name of an object; `gender` is empty where nothing agrees with it."""

    word: str
    gender: str


@dataclass(frozen=True, slots=True)
class Word:
    """One name of an attribute's value."""

    bare: str  # as in a list of words
    phrase: str  # as in a sentence, before agreement
    follows: bool  # True: the phrase follows the noun


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The words and sentence patterns of one language."""

    language: str
    space: str  # between words of a sentence; empty in Japanese
    endings: dict[str, str]  # gender -> what `+` becomes; `bare` without a noun
    objects: dict[str, tuple[Noun, ...]]  # id -> names
    words: dict[str, dict[str, tuple[Word, ...]]]  # attribute -> id of a value -> names
    categories: dict[str, tuple[str, ...]]  # id -> words for it
    patterns: dict[
        str, tuple[str, ...]
    ]  # kind of text -> sentences with `{np}`, `{facts}`, `{tags}`, `{shop}` or `{x}`

    def inflect(self, phrase: str, gender: str) -> str:
        """The form of an attribute's phrase that agrees with a gender, or its `bare` form."""
        forms = phrase.split("/")
        if len(forms) == 4:
            return forms[_WRITTEN_OUT[gender]]
        if len(forms) == 2:
            return forms[_WRITTEN_OUT[gender] // 2]
        ending = self.endings.get(gender, "")
        return " ".join(part[:-1] + ending if part.endswith("+") else part for part in phrase.split(" "))


@cache
def vocabulary(language: str) -> Vocabulary:
    """The words of one of `LANGUAGES`; read once."""
    import yaml

    if language not in LANGUAGES:
        raise ValueError(f"no words for language {language!r}; known: {', '.join(LANGUAGES)}")
    raw = yaml.safe_load((Path(__file__).parent / "words" / f"{language}.yaml").read_text(encoding="utf-8"))
    endings: dict[str, str] = raw.pop("endings", {})
    all_follow = raw.pop("adjectives", "before") == "after"
    space: str = raw.pop("space", " ")
    objects = {obj: tuple(_noun(text, bool(endings)) for text in names) for obj, names in raw.pop("objects").items()}
    unbound = Vocabulary(
        language=language, space=space, endings=endings, objects=objects, words={}, categories={}, patterns={}
    )
    words = {
        attribute: {value: tuple(_word(text, unbound, all_follow) for text in names) for value, names in values.items()}
        for attribute, values in ((name[:-1], raw.pop(name)) for name in ("colours", "materials", "styles", "settings"))
    }
    categories = {name: tuple(names) for name, names in raw.pop("categories").items()}
    patterns = {kind: tuple(sentences) for kind, sentences in raw.items()}
    return replace(unbound, words=words, categories=categories, patterns=patterns)


def _noun(text: str, gendered: bool) -> Noun:
    gender, _, word = text.partition(" ") if gendered else ("", "", text)
    return Noun(word=word, gender=gender)


def _word(text: Any, grammar: Vocabulary, all_follow: bool) -> Word:
    bare, equals, phrase = str(text).partition("=")
    phrase = phrase if equals else bare
    if not equals:
        bare = grammar.inflect(bare, "bare")
    return Word(bare=bare, phrase=phrase.removeprefix("_"), follows=all_follow or phrase.startswith("_"))
