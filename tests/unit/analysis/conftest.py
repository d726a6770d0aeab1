"""Judged pairs that fit on a screen."""

import numpy as np
import pyarrow as pa
import pytest

from ray_app.analysis.metrics.protocol import SystemScores


def judged_table(rows, **columns):
    """rows: (query, pin_id, grade)."""
    query, pin, grade = zip(*rows, strict=True) if rows else ((), (), ())
    table = {
        "query": pa.array(query, pa.string()),
        "locale": pa.array(["en-US"] * len(rows), pa.string()),
        "pin_id": pa.array(pin, pa.string()),
        "grade": pa.array(grade, pa.int8()),
    }
    return pa.table(table | {name: pa.array(values) for name, values in columns.items()})


def system(scores, probs=None, **kwargs):
    probs = None if probs is None else np.array(probs, dtype=float)
    return SystemScores(score=np.array(scores, dtype=float), probs=probs, **kwargs)


def one_hot(grades, share=0.8):
    """Probabilities that put `share` on the given grade and the rest evenly on the others."""
    probs = np.full((len(grades), 5), (1.0 - share) / 4)
    probs[np.arange(len(grades)), np.array(grades) - 1] = share
    return probs


@pytest.fixture(scope="session")
def make_pairs():
    return judged_table


@pytest.fixture(scope="session")
def make_system():
    return system


@pytest.fixture(scope="session")
def make_probs():
    return one_hot


@pytest.fixture
def synthetic():
    """30 queries of 10 pins; the teacher sees the grade through little noise, the student more, bm25 most.

    Returns pairs and systems.
    """
    rng = np.random.default_rng(3)
    rows, grades = [], []
    for query in range(30):
        for pin in range(10):
            grade = int(rng.choice([1, 3, 4, 5], p=[0.5, 0.1, 0.1, 0.3]))
            rows.append((f"query {query:02d}", f"p{pin}", grade))
            grades.append(grade)
    truth = np.array(grades)
    systems = {}
    for name, noise in {"bm25": 4.0, "teacher": 0.8, "student": 1.0}.items():
        seen = np.clip(truth + rng.normal(0, noise, len(truth)), 1, 5)
        if name == "bm25":
            systems[name] = system(seen)
            continue
        logits = -((np.arange(1, 6) - seen[:, None]) ** 2)
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        systems[name] = system(probs @ np.arange(1, 6), probs)
    return judged_table(rows), systems
