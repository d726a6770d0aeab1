"""Two spellings of one locale must not be two: each would lose the other's temperature, features and grades."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.base.locales import UNKNOWN, canonical_locale, language_of, region_of


@pytest.mark.parametrize(
    ("said", "canonical"),
    [
        ("en-US", "en-US"),
        ("en-us", "en-US"),
        ("EN-US", "en-US"),
        ("en_US", "en-US"),
        (" en_us ", "en-US"),
        ("en_US.UTF-8", "en-US"),
        ("de_DE@euro", "de-DE"),
        ("DE", "de"),
        ("zh-hant-tw", "zh-Hant-TW"),
        ("ZH_HANT", "zh-Hant"),
        ("sr-LATN-rs", "sr-Latn-RS"),
        ("es-419", "es-419"),
        ("YUE-hk", "yue-HK"),
        ("de-CH-1996", "de-CH-1996"),
        ("sl-ROZAJ-biske", "sl-rozaj-biske"),
        ("de-DE-u-co-phonebk", "de-DE"),
        ("iw_IL", "he-IL"),
        ("UND", UNKNOWN),
    ],
)
def test_each_locale_has_one_spelling(said, canonical):
    assert canonical_locale(said) == canonical


@pytest.mark.parametrize(
    "said", ["", " ", "e", "C", "POSIX", "english", "English (US)", "en-USA", "en-U", "en--US", "-US", "US-", "x-shop",
             "en-US-", "12", "en/US", "日本語", "en,de", "de-DE;q=0.9", "n/a", "en-US\nx"],
)  # fmt: skip
def test_what_is_no_language_tag_is_refused_and_not_repeated(said):
    """The message goes to whoever asked over HTTP."""
    with pytest.raises(ValueError, match="BCP 47") as caught:
        canonical_locale(said)
    assert len(said.strip()) < 5 or said.strip() not in str(caught.value)


@given(st.text(max_size=12) | st.from_regex(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8}){0,4}([.@]\w*)?", fullmatch=True))
def test_the_canonical_form_is_a_fixed_point(said):
    try:
        once = canonical_locale(said)
    except ValueError:
        return
    assert canonical_locale(once) == once
    assert canonical_locale(once.lower()) == once
    assert canonical_locale(once.replace("-", "_").upper()) == once


def test_languages_are_equal_across_case_script_and_region():
    assert {language_of(locale) for locale in ("zh", "zh-Hant-TW", "ZH-hans", "zh_CN")} == {"zh"}
    assert language_of(UNKNOWN) == UNKNOWN


def test_the_region_is_not_the_script():
    regions = [region_of(locale) for locale in ("en-US", "zh-Hant-TW", "zh-Hant", "es-419", "de", "de-1996", UNKNOWN)]
    assert regions == ["US", "TW", None, "419", None, None, None]
