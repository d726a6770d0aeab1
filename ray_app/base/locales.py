"""One spelling for each locale. What comes in (rows, configs, requests) is brought to it at the door, so that equal is `==`.

A locale is a BCP 47 language tag: language, maybe script, maybe region, maybe variants (`de`, `zh-Hant-TW`, `es-419`).
"""

import re
from functools import lru_cache

UNKNOWN = "und"  # BCP 47's tag for "undetermined": of a query whose locale nobody said; a pin has null then

# No subtag of three letters after the language: `zh-yue` is today's `yue`, and `en-USA` is a slip.
_TAG = re.compile(
    r"(?P<language>[a-z]{2,3})(?:-(?P<script>[a-z]{4}))?(?:-(?P<region>[a-z]{2}|[0-9]{3}))?"
    r"(?P<variants>(?:-(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*)"
)
_EXTENSION = re.compile(r"-[a-z0-9]-.*")  # such as `-u-co-phonebk`: how to sort, not which language
_RENAMED = {"iw": "he", "in": "id", "ji": "yi"}  # as older Java writes Hebrew, Indonesian and Yiddish


@lru_cache(maxsize=10_000)
def canonical_locale(text: str) -> str:
    """A locale in its one spelling: `en_us`, `EN-US` and `en_US.UTF-8` are `en-US`, `zh-hant-tw` is `zh-Hant-TW`.

    POSIX's encoding and modifier (`.UTF-8`, `@euro`) and BCP 47's extensions are cut. Subtags are checked by their shape,
    not looked up.

    Raises:
        ValueError: no language tag. The message does not repeat it.
    """
    plain = re.split(r"[.@]", text.strip(), maxsplit=1)[0].replace("_", "-").lower()
    found = _TAG.fullmatch(_EXTENSION.sub("", plain))
    if found is None:
        raise ValueError(f"not a BCP 47 language tag such as en-US or zh-Hant-TW ({UNKNOWN}: not known)")
    language, script, region, variants = found.group("language", "script", "region", "variants")
    parts = [_RENAMED.get(language, language), (script or "").title(), (region or "").upper(), *variants.split("-")]
    return "-".join(part for part in parts if part)


def language_of(locale: str) -> str:
    """The language of a locale, in lower case: `zh` of `zh-Hant-TW`; of UNKNOWN itself."""
    return locale.replace("_", "-").partition("-")[0].lower()


def region_of(locale: str) -> str | None:
    """The region of a canonical locale: `TW` of `zh-Hant-TW`; None: it names none."""
    return next((part for part in locale.split("-")[1:3] if re.fullmatch(r"[A-Z]{2}|[0-9]{3}", part)), None)
