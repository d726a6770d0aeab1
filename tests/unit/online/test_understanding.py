"""What retrieval makes of a user's words; it must never make something else of them."""

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from string import ascii_lowercase as LETTERS

import pytest

from ray_app.online import query_understanding as understanding
from ray_app.online.query_understanding import MAX_TOKENS, SpellingDictionary, count_words, understand

TEXTS = [
    "Ceramic coffee mug, hand made",
    "Coffee mug with a handle",
    "Canon EOS 5d camera battery",
    "Canon EOS 6d camera battery",
    "Wireless headphones",
    "Garden chairs of wood",
    "Gardenia seeds",
    "ノートパソコン ケース",
    "水筒 大容量",
    "خلاط كهربائي",
    "लाल मग",
]
LANGUAGES = ["en", "de", "ja", "ar", "hi"]


@pytest.fixture(scope="module")
def dictionary():
    return SpellingDictionary.of(count_words(TEXTS), LANGUAGES)


def test_the_text_is_normalised_as_everywhere_else(dictionary):
    """Else the same query would be embedded, cached and counted under two names."""
    query = understand("  COFFEE\u00a0 Ｍｕｇ ", dictionary)
    assert (query.text, query.tokens) == ("coffee mug", ["coffee", "mug"])


def test_a_slip_finds_the_word_and_keeps_the_users_own(dictionary):
    """A new brand may look like a slip: its pins must still be found tomorrow."""
    query = understand("cofee mug", dictionary)
    assert query.corrections == {"cofee": "coffee"}
    assert query.tokens == ["cofee", "mug"]
    assert query.stems == ["cofee", "mug", "coffee"]


@pytest.mark.parametrize(
    "slip, meant",
    [("ceramci", "ceramic"), ("ecramic", "ceramic"), ("headfones", "headphones"), ("wireles", "wireless")],
    ids=["swapped", "swapped at the start", "two edits in a long word", "left out"],
)
def test_usual_slips_are_seen_through(dictionary, slip, meant):
    """These are what people type."""
    assert understand(slip, dictionary).corrections == {slip: meant}


@pytest.mark.parametrize("word", ["coffee", "mugs", "chair", "gardens", "seed", "batteries"])
def test_a_word_that_a_pin_says_is_left_alone(dictionary, word):
    """A user who types what the catalogue says gets that, in singular or plural."""
    assert understand(word, dictionary).corrections == {}


@pytest.mark.parametrize("model", ["7d", "eos7d", "5db1", "camera5", "٥خلاط"])
def test_a_model_number_never_becomes_another(dictionary, model):
    """Someone who wants a battery for the 7d must not get one for the 5d."""
    assert understand(model, dictionary).corrections == {}


@pytest.mark.parametrize(
    "word", ["mag", "rug", "wiring", "handul", "ferramic"], ids=["short", "short", "far", "two edits", "first letter"]
)
def test_words_that_are_merely_alike_are_not_mixed_up(dictionary, word):
    """A query about something that we do not have would be answered with something else."""
    assert understand(word, dictionary).corrections == {}


def test_scripts_without_an_alphabet_are_never_corrected(dictionary):
    """水筒 and 水道 differ by one character, and are a bottle and the waterworks."""
    assert understand("水道 大容器 ノートパソコソ", dictionary).corrections == {}


def test_arabic_and_hindi_words_are_corrected_as_any_other():
    """Slips are no privilege of Latin letters."""
    dictionary = SpellingDictionary.of(count_words(["خلاط كهربائي", "हिंदी किताब"]), [])
    assert understand("خلاط كهربئي", dictionary).corrections == {"كهربئي": "كهربائي"}
    assert understand("किताबब", dictionary).corrections == {"किताबब": "किताब"}


def test_of_equally_near_words_the_frequent_one_wins_then_the_alphabet():
    """Anything else would depend on the order of the pins."""
    texts = ["carton", "carbon", "carbon", "carron"]
    assert understand("caron", SpellingDictionary.of(count_words(texts), [])).corrections == {"caron": "carbon"}
    assert understand("caron", SpellingDictionary.of(count_words(texts[:2]), [])).corrections == {"caron": "carbon"}
    assert understand("caroon", SpellingDictionary.of(count_words(["carton", "carron"]), [])).corrections == {
        "caroon": "carron"
    }


def test_the_order_of_the_pins_does_not_matter():
    """Two replicas must understand a query alike."""
    shuffled = [*TEXTS]
    random.Random(1).shuffle(shuffled)
    one, other = (
        SpellingDictionary.of(count_words(TEXTS), LANGUAGES),
        SpellingDictionary.of(count_words(shuffled), LANGUAGES[::-1]),
    )
    for text in ("cofee headfones", "gardn chiar", "kamera"):
        assert understand(text, one) == understand(text, other)


@pytest.mark.parametrize(
    "text, language",
    [
        ("ceramic mug with handle", "en"),
        ("kaffeebecher aus keramik für das büro", "de"),
        ("赤いマグカップ", "ja"),
        ("حاسوب محمول", "ar"),
        ("बैठक में लकड़ी का दर्पण", "hi"),
    ],
)
def test_the_language_of_a_clear_query_is_told(dictionary, text, language):
    """It is shown to users."""
    assert understand(text, dictionary).language == language


@pytest.mark.parametrize("text", ["mug", "x", "5d", "😀😀", "", "!!!", "нож для хлеба"])
def test_a_short_or_foreign_query_has_no_language(dictionary, text):
    """A wrong language is worse than none."""
    assert understand(text, dictionary).language is None


def test_japanese_on_english_pins_is_not_english():
    """With one language to choose from, every text would be of it."""
    assert understand("赤いマグカップ", SpellingDictionary.of(count_words(TEXTS), ["en"])).language is None


def test_languages_that_nobody_knows_are_left_out():
    """A locale such as xx-XX must not stop the service from starting."""
    assert SpellingDictionary.of(count_words(TEXTS), ["en", "xx", "en"]).languages == ("en",)


@pytest.mark.parametrize(
    "text", ["", "😀🎉", "\u200d", "\ud800", "a" * 500, "ab " * 166, "漢" * 500, "\u0301" * 500, "_-_"],
    ids=["empty", "emoji", "joiner", "surrogate", "one word", "many words", "ideographs", "marks", "signs"],
)  # fmt: skip
def test_odd_queries_are_understood_as_something(dictionary, text):
    """Whatever comes in, a search must not fail."""
    query = understand(text, dictionary)
    assert query.corrections == {}
    assert len(query.tokens) <= MAX_TOKENS


def test_a_catalogue_without_words_knows_none():
    """A first release may have no texts."""
    query = understand("red mug", SpellingDictionary.of(count_words(["", "😀"]), []))
    assert (query.language, query.corrections, query.stems) == (None, {}, ["red", "mug"])


def test_threads_share_the_language_model(dictionary):
    """Requests of several threads must not disturb each other."""
    texts = ["ceramic mug with handle", "赤いマグカップ", "kaffeebecher aus keramik für das büro"] * 30
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda text: understand(text, dictionary).language, texts))
    assert told == ["en", "ja", "de"] * 30


def test_a_long_query_of_unknown_words_costs_little_in_a_large_vocabulary():
    """One query must not hold up the others: each unknown word is compared with few of 100,000 known ones."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    rng = random.Random(0)
    words = sorted({"".join(rng.choices(syllables, k=4)) + rng.choice("xnrs") for _ in range(120_000)})[:100_000]
    dictionary = SpellingDictionary.of(count_words(words), ["en"])
    query = " ".join("".join(rng.choices(syllables, k=4)) + "q" for _ in range(50))
    understand(query, dictionary)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        understand(query, dictionary)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.05  # 0.003 on an idle core


@pytest.fixture
def compared(monkeypatch):
    """How many words each look compares with, letter by letter."""
    from rapidfuzz import process

    sizes, cdist = [], process.cdist
    monkeypatch.setattr(process, "cdist", lambda a, b, **options: sizes.append(len(b)) or cdist(a, b, **options))
    return sizes


def test_a_catalogue_of_words_that_are_all_alike_bounds_the_work(compared, monkeypatch):
    """40 words near to 150,000 made-up ones took a quarter of a second of the only thread that ranks."""
    monkeypatch.setattr(understanding, "_MAX_CLOSE", 50)
    alike = Counter({f"abcdefg{a}{b}": 100 if (a, b) == ("x", "y") else 1 for a in LETTERS for b in LETTERS})
    dictionary = SpellingDictionary.of(alike, ["en"])
    assert dictionary.correct("abcdefgöü") == "abcdefgxy", "the most frequent are those that are looked at"
    assert compared == [50]


def test_a_word_that_was_looked_for_is_remembered(dictionary, compared):
    fresh = replace(dictionary)
    assert [understand("cofee headfones", fresh).corrections for _ in range(3)] == [
        {"cofee": "coffee", "headfones": "headphones"}
    ] * 3
    assert len(compared) == 2
