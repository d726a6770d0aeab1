"""Query terms that a pin's text contains, for the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_app.base.text import field_text, stem_tokens


def matched_terms(tokens: Sequence[str], row: Mapping[str, Any], fields: Sequence[str]) -> dict[str, list[str]]:
    """The query's words that each field says, be it in singular or plural.

    Returns:
        Field -> words in the query's order, none twice; fields that say none are absent.
    """
    stems = {token: stem_tokens(token) for token in tokens}
    matched = {}
    for field in fields:
        said = set(stem_tokens(field_text(row.get(field))))
        words = [token for token, stem in stems.items() if stem and said.issuperset(stem)]
        if words:
            matched[field] = words
    return matched
