"""Query understanding: language detection, and spelling correction of terms that no pin contains.

Nothing here changes what the student reads: it gets the user's own words.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_app.base.text import normalize_query, stem_tokens, tokenize

MAX_TOKENS = 64  # of a query; guessed. What comes after is not looked for word by word
_MAX_CORRECTED = 8  # unknown words of a query that get a near word; guessed. Bounds the time
_MAX_WORDS = 500_000  # most frequent words that others are corrected to; guessed. Bounds the time
_MAX_CLOSE = 20_000  # most frequent of them that a word is compared with letter by letter; guessed. Bounds the time
_NEAR_KEPT = 10_000  # words whose near word is remembered
_MIN_LETTERS = 4  # shorter words are near to too many others
_LONG_WORD = 8  # letters from which on two edits are taken for a slip
_MAX_LETTERS = 32  # longer ones are no words
_NO_ALPHABET = "\u0e00"  # from Thai on, few scripts have both letters and spaces: an edit is another word, not a slip

_MIN_SHARE = 0.7  # of a language among the catalogue's. With the next one, on 571 queries of the demo's log in eight
_MIN_PLAUSIBLE = 0.3  # languages: it says one for 58% and is right on 99%. Next to the likeliest of all languages
_MIN_LANGUAGE_LETTERS = 4  # of alphabets; two of other scripts say as much


@dataclass(frozen=True, kw_only=True)
class UnderstoodQuery:
    """A query as retrieval sees it."""

    text: str  # normalised
    tokens: list[str]  # words of the text, in order, repeats kept, at most MAX_TOKENS
    language: str | None  # ISO 639 code, one of the catalogue's; None: cannot say
    corrections: dict[str, str]  # unknown word -> the known word that is looked for as well

    @cached_property
    def stems(self) -> list[str]:
        """Distinct stems to look for: of the user's words, and of what they may have meant."""
        return list(dict.fromkeys(stem_tokens(" ".join([*self.tokens, *self.corrections.values()]))))


@dataclass(frozen=True, kw_only=True, eq=False)
class SpellingDictionary:
    """The catalogue's words and languages. Build it with `SpellingDictionary.of`; any number of threads may read."""

    languages: tuple[str, ...]  # codes that queries are told apart by
    stems: frozenset[str]  # of all words
    words: NDArray[Any]  # (num_words,) those to correct to, by length
    masks: NDArray[np.uint64]  # (num_words,) uint64, which letters each word has, as `_letters` says
    ranks: NDArray[np.int64]  # (num_words,) place of each word among all by falling number of pins, then alphabet
    heads: NDArray[np.uint32]  # (num_words, 2) uint32, first two letters
    starts: list[int]  # place of the first word of each length

    @classmethod
    def of(cls, counts: Counter[str], languages: Sequence[str]) -> "SpellingDictionary":
        """A catalogue's words.

        Args:
            languages: ISO 639 codes of the pins; those that py3langid does not know are left out.
        """
        wanted = [word for word in counts if _is_plain(word) and _MIN_LETTERS - 1 <= len(word) <= _MAX_LETTERS + 2]
        wanted = sorted(wanted, key=lambda word: (-counts[word], word))[:_MAX_WORDS]
        lengths = np.fromiter(map(len, wanted), np.int64, len(wanted))
        ranks = np.argsort(lengths, kind="stable")
        known = set(_identifier().labels)
        return cls(
            languages=tuple(language for language in dict.fromkeys(languages) if language in known),
            stems=frozenset(stem for word in counts for stem in stem_tokens(word)),
            words=np.array(wanted, dtype=object)[ranks],
            masks=np.fromiter(map(_letters, wanted), np.uint64, len(wanted))[ranks],
            ranks=ranks,
            heads=np.array([[ord(char) for char in word[:2]] for word in wanted], np.uint32).reshape(-1, 2)[ranks],
            starts=np.searchsorted(lengths[ranks], np.arange(_MAX_LETTERS + 4)).tolist(),
        )

    def contains(self, word: str) -> bool:
        """Return True if a pin contains the word, in singular or plural."""
        stems = stem_tokens(word)
        return not stems or all(stem in self.stems for stem in stems)

    @cached_property
    def correct(self) -> Callable[[str], str | None]:
        """`_correct`, remembered: slips are made again, and whoever sends odd words again and again pays once."""
        return lru_cache(_NEAR_KEPT)(self._correct)

    def _correct(self, word: str) -> str | None:
        """The word that an unknown one is most likely a slip of, if there is any.

        One edit (letter added, left out, changed, or two neighbours swapped) of 4 to 7 letters, two of more; the fewer
        the better, then the more pins have it, then by alphabet. The first letter is right, or swapped with the second:
        "cultivate" is no slip of "ultimate". A word with digits may be a model number, and has none.
        """
        if not _is_plain(word) or not _MIN_LETTERS <= len(word) <= _MAX_LETTERS:
            return None
        from rapidfuzz.distance import OSA
        from rapidfuzz.process import cdist

        allowed = 1 if len(word) < _LONG_WORD else 2
        first, last = self.starts[len(word) - allowed], self.starts[len(word) + allowed + 1]
        # An edit changes at most two letters of the set, so words whose letters differ more need no closer look.
        differ = np.bitwise_count(self.masks[first:last] ^ np.uint64(_letters(word)))
        close = first + np.flatnonzero(differ <= 2 * allowed)
        head = [ord(word[0]), ord(word[1])]
        close = close[(self.heads[close, 0] == head[0]) | (self.heads[close] == head[::-1]).all(axis=1)]
        if not len(close):
            return None
        if len(close) > _MAX_CLOSE:
            close = close[np.argpartition(self.ranks[close], _MAX_CLOSE)[:_MAX_CLOSE]]
        edits = cdist([word], self.words[close], scorer=OSA.distance, score_cutoff=allowed, dtype=np.uint8)[0]
        if edits.min() > allowed:
            return None
        best = close[edits == edits.min()]
        return str(self.words[best[np.argmin(self.ranks[best])]])


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Document frequency of each word."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(set(tokenize(text)))
    return counts


def understand(text: str, dictionary: SpellingDictionary) -> UnderstoodQuery:
    """Normalise, tell the language, find near words for those that no pin says."""
    text = normalize_query(text)
    tokens = tokenize(text)[:MAX_TOKENS]
    unknown = [token for token in dict.fromkeys(tokens) if not dictionary.contains(token)]
    near = {token: dictionary.correct(token) for token in unknown[:_MAX_CORRECTED]}
    return UnderstoodQuery(
        text=text, tokens=tokens, language=detect_language(text, dictionary.languages),
        corrections={token: word for token, word in near.items() if word is not None},
    )  # fmt: skip


def detect_language(text: str, languages: Sequence[str]) -> str | None:
    """The one of `languages` that a text is in, or None: too short, none of them, or like several of them."""
    letters = [char for char in text if char.isalpha()]
    enough = _MIN_LANGUAGE_LETTERS if all(char < _NO_ALPHABET for char in letters) else 2
    if len(letters) < enough or not languages:
        return None
    # Over all languages that the model knows: among the catalogue's alone, Japanese on English pins would be English.
    ranked = dict(_identifier().rank(text))
    likely = {language: ranked[language] for language in languages}
    best = max(likely, key=likely.__getitem__)
    if likely[best] < _MIN_SHARE * sum(likely.values()) or likely[best] < _MIN_PLAUSIBLE * max(ranked.values()):
        return None
    return best


_identifier_lock = threading.Lock()
_loaded: list[Any] = []


def _identifier() -> Any:
    """py3langid's model, read once per process: that takes a second. It is only read from then on."""
    with _identifier_lock:
        if not _loaded:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            _loaded.append(LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True))
        return _loaded[0]


def _is_plain(word: str) -> bool:
    """Return True for a word of letters alone, of a script in which one edit may be a typo."""
    return all(
        not char.isnumeric() and (char < _NO_ALPHABET or "\u1e00" <= char < "\u2000")  # the latter: Vietnamese, Greek
        for char in word
    )


def _letters(word: str) -> int:
    """Bit mask of the 64 letter classes in a word. Neighbors in the alphabet are in different classes."""
    mask = 0
    for char in word:
        mask |= 1 << (ord(char) & 63)
    return mask
