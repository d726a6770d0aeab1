"""Strata of queries: locale and how often a query is asked, as fine as a study of few human labels can bear.

Each stratum takes at least two human labels, however small it is. With fifty strata of which most are tiny, a hundred labels
would go where hardly any traffic is; and strata with one label are taken together, as if drawn at one rate, which they were not.
So small ones are put together before anything is drawn, by their size alone.
"""

from collections import Counter
from collections.abc import Mapping

from ray_app.analysis.measurement.rankings import QueryKey

LEAST_SHARE = 0.05  # guessed: at most twenty strata, so forty labels at least
OTHER_LOCALES, OTHERS = "other locales", "others"


def name_strata(band_of: Mapping[QueryKey, str]) -> dict[QueryKey, str]:
    """Stratum of each query, such as `de-DE/head`.

    A stratum with less than LEAST_SHARE of the queries goes to `other locales/head`; if that is still so small, to `others`;
    and these to the smallest other stratum. Depends on the set of queries only, so that the next round has the same strata.

    Args:
        band_of: Query -> head, torso, tail or unseen, in its locale's log.
    """
    least = LEAST_SHARE * len(band_of)
    names = {query: f"{query[1]}/{band}" for query, band in band_of.items()}
    for coarser in (lambda query: f"{OTHER_LOCALES}/{band_of[query]}", lambda _: OTHERS):
        sizes = Counter(names.values())
        names = {query: name if sizes[name] >= least else coarser(query) for query, name in names.items()}
    sizes = Counter(names.values())
    if OTHERS in sizes and sizes[OTHERS] < least and len(sizes) > 1:
        smallest = min((size, name) for name, size in sizes.items() if name != OTHERS)[1]
        joint = f"{smallest} + {OTHERS}"
        names = {query: joint if name in (smallest, OTHERS) else name for query, name in names.items()}
    return names
