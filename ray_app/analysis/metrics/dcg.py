"""Discounted cumulative gain, once for all: evaluate, measurement, simulate and reuse. Equal to ir_measures (tested).

    nDCG = DCG of what is shown / DCG of the best order of all that is judged, with discount 1 / log2(place + 1).

Where nothing judged brings gain, every order is as good and nDCG is 0/0. It is NaN here. The mean called nDCG leaves such
queries out; one that has to count them (as 0, as trec_eval's mean does) is called nDCG0.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.analysis.metrics.bootstrap import ratio

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def discounts(cutoff: int) -> Floats:
    """Weight of a gain at each of the first places, (cutoff,)."""
    return np.asarray(1.0 / np.log2(np.arange(cutoff) + 2.0))


def dcg(gain: ArrayLike, place: Ints, query: Ints, num_queries: int, cutoff: int) -> Floats:
    """DCG of each query, (num_queries,).

    Args:
        gain: (num_pins,) of each pin, query after query or in any order.
        place: (num_pins,) of each pin in its query's order, from 0; those from `cutoff` on do not count.
        query: (num_pins,) of each pin.
    """
    seen = place < cutoff
    value = np.asarray(gain, np.float64)[seen] * discounts(cutoff)[place[seen]]
    return np.bincount(query[seen], weights=value, minlength=num_queries).astype(np.float64)


def ideal_dcg(gain: ArrayLike, query: Ints, num_queries: int, cutoff: int) -> Floats:
    """DCG of the best order of each query's pins, (num_queries,); arguments as of `dcg`."""
    gain = np.asarray(gain, np.float64)
    order = np.lexsort((-gain, query))
    return dcg(gain[order], places(query[order]), query[order], num_queries, cutoff)


def places(query: Ints) -> Ints:
    """Place of each pin among those of its query, from 0, if pins stand query after query; (num_pins,)."""
    return np.arange(len(query)) - np.searchsorted(query, query)


def ndcg(found: Floats, ideal: Floats) -> Floats:
    """`found` over `ideal`; NaN where nothing can be gained."""
    return ratio(found, ideal)
