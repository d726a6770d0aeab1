"""Do the intervals of `ray_app.analysis.measurement` hold, and what do teacher and strata save? By simulation with a known truth.

    python benchmarks/bench_measurement.py              # 1,000 studies per cell, about 2 minutes

Traffic: 60,000 queries in 4 locales x 3 bands of frequency, a pool of 30 pins with true grades each, two rankings of it.
The truth is the mean over all of them. A study draws 2,000 queries; teachers grade their pools, humans (here: the truth)
those of a few queries, spread by Neyman's rule from a pilot study. Teachers, from good to bad:

    noisy     one pair in four is a grade off, either way
    generous  three pairs in ten are a grade too high
    english   as `noisy` in en-US; elsewhere two pairs in three are a random grade
    partial   one pair in three has the grade that the treatment's score suggests: the judge is a relative of a contestant
    useless   random grades

`ratio` is the lowest coverage over all cells divided by 0.95; the goal is 0.93 to 0.97 in each. Standard deviations are
those of the estimates over the studies, against humans alone on a plain random draw of as many queries (`alone`).
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _bench import finish

from ray_app.analysis.measurement.prediction_powered import (
    QueryMetrics,
    StrataSummary,
    merge_small_strata,
    ppi_mean,
    summarize,
)
from ray_app.analysis.measurement.study_design import design_study
from ray_app.analysis.metrics.bootstrap_result import GRADE_AS_RATING
from ray_app.analysis.metrics.protocol import NDCG_CUTOFF, PRECISION_CUTOFF

SEED = 29
NUM_TRAFFIC, NUM_QUERIES, POOL = 60_000, 2_000, 30
NUM_LABELLED = (50, 200)
LOCALES, BANDS = (0.5, 0.2, 0.2, 0.1), (0.3, 0.3, 0.4)  # guessed shares of en-US and three others; of head, torso, tail
FIGURES = ("ndcg_control", "ndcg_difference", "p_difference")
STRATIFIED = (2_000, 5_000)  # queries, as in the published comparison
RELEVANT = 4

Figures = dict[str, np.ndarray]


def main() -> None:
    started = time.perf_counter()
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    rng = np.random.default_rng(SEED)
    stratum, grades, scores = traffic(rng)
    truth = measure(grades, scores)
    by_teacher = {name: measure(teach(rng, grades, stratum, scores[1]), scores) for name, teach in TEACHERS.items()}
    cells = [
        cell
        for name, taught in by_teacher.items()
        for num in NUM_LABELLED
        for cell in studies(rng, name, taught, truth, stratum, num, repeats)
    ]
    print(
        f"{'teacher':10}{'labels':>7}  {'figure':17}{'truth':>8}{'teacher only':>14}{'coverage':>10}{'sd / alone':>12}"
    )
    for cell in cells:
        print(
            f"{cell['teacher']:10}{cell['num_labelled']:7}  {cell['figure']:17}{cell['truth']:8.4f}"
            f"{cell['teacher_only']:14.4f}{cell['coverage']:10.3f}{cell['sd_over_alone']:12.2f}"
        )
    strata = {name: stratification(rng, truth[name], stratum, repeats) for name in FIGURES}
    for name, found in strata.items():
        print(f"strata, {name}: {found}")
    lowest = min(cell["coverage"] for cell in cells)
    print(f"coverage {lowest:.3f} to {max(cell['coverage'] for cell in cells):.3f} over {len(cells)} cells")
    finish(
        "bench_measurement",
        lowest / 0.95,
        repeats=repeats,
        seed=SEED,
        num_traffic=NUM_TRAFFIC,
        num_queries=NUM_QUERIES,
        cells=cells,
        strata=strata,
        wall_sec=round(time.perf_counter() - started, 1),
    )


def traffic(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stratum (num,), true grades (num, POOL) 1..5, and the scores of control and treatment (2, num, POOL)."""
    locale = rng.choice(len(LOCALES), NUM_TRAFFIC, p=LOCALES)
    band = rng.choice(len(BANDS), NUM_TRAFFIC, p=BANDS)
    # Head queries have more relevant pins, and foreign ones fewer; queries differ within a stratum too.
    level = 3.4 - 0.7 * band - 0.25 * (locale > 0) + rng.normal(0, 0.6, NUM_TRAFFIC)
    grades = np.clip(np.rint(level[:, None] + rng.normal(0, 1.1, (NUM_TRAFFIC, POOL))), 1, 5).astype(np.int64)
    noise = np.stack([np.full(NUM_TRAFFIC, 1.5), 1.3 + 0.2 * (locale == 3)])  # the treatment does not help locale 3
    scores = grades + noise[..., None] * rng.normal(0, 1, (2, NUM_TRAFFIC, POOL))
    return locale * len(BANDS) + band, grades, scores


def noisy(rng: np.random.Generator, grades: np.ndarray, *_: np.ndarray) -> np.ndarray:
    off = rng.choice([-1, 0, 1], grades.shape, p=[0.125, 0.75, 0.125])
    return np.clip(grades + off, 1, 5)


def generous(rng: np.random.Generator, grades: np.ndarray, *_: np.ndarray) -> np.ndarray:
    return np.clip(grades + (rng.random(grades.shape) < 0.3), 1, 5)


def english(rng: np.random.Generator, grades: np.ndarray, stratum: np.ndarray, *_: np.ndarray) -> np.ndarray:
    abroad = (stratum >= len(BANDS))[:, None] & (rng.random(grades.shape) < 2 / 3)
    return np.where(abroad, rng.integers(1, 6, grades.shape), noisy(rng, grades))


def partial(rng: np.random.Generator, grades: np.ndarray, _: np.ndarray, treatment: np.ndarray) -> np.ndarray:
    return np.where(rng.random(grades.shape) < 1 / 3, np.clip(np.rint(treatment), 1, 5), grades).astype(np.int64)


def useless(rng: np.random.Generator, grades: np.ndarray, *_: np.ndarray) -> np.ndarray:
    return rng.integers(1, 6, grades.shape)


TEACHERS: dict[str, Callable[..., np.ndarray]] = {
    "noisy": noisy, "generous": generous, "english": english, "partial": partial, "useless": useless,
}  # fmt: skip


def measure(grades: np.ndarray, scores: np.ndarray) -> Figures:
    """Figures (num_queries,) of both rankings, if these are the pins' grades."""
    gain_of = np.array([0, *(2 ** GRADE_AS_RATING[g] - 1 for g in range(1, 6))], np.float64)
    discount = 1.0 / np.log2(np.arange(NDCG_CUTOFF) + 2.0)
    gains = gain_of[grades]
    ideal = -np.sort(-gains, axis=1)[:, :NDCG_CUTOFF] @ discount
    ndcg, precision = [], []
    for ranking in scores:
        order = np.argsort(-ranking, axis=1)
        found = np.take_along_axis(gains, order[:, :NDCG_CUTOFF], axis=1) @ discount
        ndcg.append(np.divide(found, ideal, out=np.zeros(len(ideal)), where=ideal > 0))
        precision.append((np.take_along_axis(grades, order[:, :PRECISION_CUTOFF], axis=1) >= RELEVANT).mean(axis=1))
    return {
        "ndcg_control": ndcg[0], "ndcg_difference": ndcg[1] - ndcg[0], "p_difference": precision[1] - precision[0]
    }  # fmt: skip


def studies(
    rng: np.random.Generator, name: str, taught: Figures, truth: Figures, stratum: np.ndarray, num: int, repeats: int
) -> list[dict[str, Any]]:
    """Coverage and standard deviation of `repeats` studies with `num` human-labelled queries, a row per figure."""
    pilots = {f: pilot(rng, taught[f], truth[f], stratum) for f in FIGURES}
    found: dict[str, list[tuple[float, float, bool]]] = {f: [] for f in FIGURES}
    for _ in range(repeats):
        drawn = rng.choice(NUM_TRAFFIC, NUM_QUERIES, replace=False)
        for figure in FIGURES:
            mean = float(truth[figure].mean())
            wanted = design_study(pilots[figure], num).by_stratum
            human = label(rng, truth[figure][drawn], stratum[drawn], wanted)
            made = ppi_mean(QueryMetrics(teacher=taught[figure][drawn], human=human, stratum=stratum[drawn])).interval
            plain = truth[figure][drawn[: int(wanted.sum())]].mean()
            holds = made.lo is not None and made.hi is not None and made.lo <= mean <= made.hi
            found[figure].append((made.value or 0.0, float(plain), holds))
    rows = []
    for figure, results in found.items():
        values, plain, inside = (np.array(column, np.float64) for column in zip(*results, strict=True))
        rows.append(
            {
                "teacher": name, "num_labelled": num, "figure": figure, "truth": round(float(truth[figure].mean()), 5),
                "teacher_only": round(float(taught[figure].mean()), 5), "mean": round(float(values.mean()), 5),
                "coverage": round(float(inside.mean()), 4),
                "sd": round(float(values.std()), 6), "sd_alone": round(float(plain.std()), 6),
                "sd_over_alone": round(float(values.std() / plain.std()), 3),
            }
        )  # fmt: skip
    return rows


def pilot(rng: np.random.Generator, taught: np.ndarray, truth: np.ndarray, stratum: np.ndarray) -> StrataSummary:
    """What an earlier study of 300 human-labelled queries knows of the strata."""
    drawn = rng.choice(NUM_TRAFFIC, NUM_QUERIES, replace=False)
    human = np.where(np.arange(NUM_QUERIES) < 300, truth[drawn], np.nan)
    kept, _ = merge_small_strata(QueryMetrics(teacher=taught[drawn], human=human, stratum=stratum[drawn]))
    return summarize(kept)


def label(rng: np.random.Generator, truth: np.ndarray, stratum: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Human figures (num_queries,): as many of each stratum as wanted, NaN elsewhere."""
    human = np.full(len(truth), np.nan)
    for number, count in enumerate(wanted):
        members = np.flatnonzero(stratum == number)
        chosen = rng.choice(members, min(int(count), len(members)), replace=False)
        human[chosen] = truth[chosen]
    return human


def stratification(rng: np.random.Generator, truth: np.ndarray, stratum: np.ndarray, repeats: int) -> dict[str, Any]:
    """Standard deviation of the mean over stratified queries against a plain draw, all labelled.

    The strata's shares of the traffic are known. `change_to_2000_plain` has the same denominator for every size.
    """
    num_strata = int(stratum.max()) + 1
    members = [np.flatnonzero(stratum == h) for h in range(num_strata)]
    share = np.array([len(m) for m in members]) / len(stratum)
    spread = share * np.array([truth[m].std() for m in members])
    out: dict[str, Any] = {"variance_between_strata": round(between(truth, members, share), 3)}
    first = None
    for num in STRATIFIED:
        counts = np.maximum(np.rint(num * spread / spread.sum()), 2).astype(int)
        plain, stratified = np.empty(repeats), np.empty(repeats)
        for i in range(repeats):
            plain[i] = truth[rng.integers(0, len(truth), num)].mean()
            means = [truth[rng.choice(m, c)].mean() for m, c in zip(members, counts, strict=True)]
            stratified[i] = share @ means
        first = first or plain.std()
        out[str(num)] = {
            "sd_plain": round(float(plain.std()), 6),
            "sd_stratified": round(float(stratified.std()), 6),
            "change_same_size": round(float(stratified.std() / plain.std() - 1), 3),
            "change_to_2000_plain": round(float(stratified.std() / first - 1), 3),
        }
    return out


def between(truth: np.ndarray, members: list[np.ndarray], share: np.ndarray) -> float:
    means = np.array([truth[m].mean() for m in members])
    return float(share @ (means - truth.mean()) ** 2 / truth.var())


if __name__ == "__main__":
    main()
