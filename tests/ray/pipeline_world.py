"""A tiny catalogue with tiny models, and all stages run over it once; tests that change a run take a copy."""

import csv
from pathlib import Path

import yaml

from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.tables.manifest import Manifest

STAGES = (
    "ingest", "enrich", "zero_shot", "corpus_statistics", "engagement", "graph", "train_teacher", "sample", "label", "distill", "embed", "evaluate",
)  # fmt: skip
THINGS = ("cup", "mug", "shoe", "laptop", "hub", "cable")
COLOURS = ("red", "green", "blue", "black", "small", "large")


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_source(folder: Path, tiny_encoder: str) -> None:
    """36 pins, 12 judged queries, 2 kinds of dirt, and a config."""
    pins = [
        {"pin_id": f"{c}-{t}", "title": f"the {c} {t}", "description": f"a {c} {t} for the {c}", "locale": "en-US"}
        for c in COLOURS
        for t in THINGS
    ]
    pins[0] |= {"title": "", "description": ""}  # a pin that says nothing
    write_csv(folder / "pins.csv", [*pins, pins[5]])  # and one that comes twice
    labels = [
        {"query": q, "pin_id": p["pin_id"], "rater_id": "final", "grade": 5 if q in p["pin_id"] else 1, "locale": "en-US"}
        for q in (*THINGS, *COLOURS) for p in pins
    ]  # fmt: skip
    write_csv(folder / "labels.csv", [*labels, {**labels[0], "pin_id": "nowhere"}])
    log = [
        {
            "event_id": f"{q}{i}{n}", "timestamp": "2026-01-01T00:00:00Z", "query": q, "locale": "en-US",
            "pin_id": f"{c}-{t}", "position": i + 1, "action": action, "client_id": f"visitor {n}",
        }
        for t in THINGS
        for c in COLOURS[:3]
        for i, q in enumerate((f"{c} {t}",))
        for n, action in enumerate(("impression", "click", "save") if (c, t) != ("red", "cup") else ("impression",))
    ]  # fmt: skip
    write_csv(folder / "log.csv", log)
    boards = [{"board_id": t, "pin_id": f"{c}-{t}", "board_title": f"my {t}"} for t in THINGS for c in COLOURS[1:4]]
    write_csv(folder / "boards.csv", boards)
    files = {"pins": "pins", "search_log": "log", "boards": "boards", "human_labels": "labels"}
    train = {"epochs": 2, "batch_size": 32, "head_learning_rate": 0.01}
    config = {
        "output": str(folder / "run"),
        "ingest": {table: {"adapter": "table", "path": str(folder / f"{file}.csv")} for table, file in files.items()}
        | {"until": "2027-01-01"},
        "enrich": {"min_clients": 2},
        "features": {"zero_shot_model": tiny_encoder, "zero_shot_max_tokens": 16},
        "engagement": {"epochs": 2},
        "graph": {"epochs": 2},
        "train_teacher": {"base_model": tiny_encoder, "max_tokens": 32, "train": train},
        "sample": {"num_pairs": 120},
        "label": {"rows_per_block": 16, "batch_size": 8, "cost_sample_rows": 20, "max_error_rate": 0.2},
        "prices": {"cpu_hour": 0.36},
        "distill": {"base_model": tiny_encoder, "dim": 8, "train": train, "feature_train": train},
        "embed": {"rows_per_block": 16, "max_error_rate": 0.1},
        "evaluate": {"num_resamples": 50},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def run_stages(cfg: Config, *names: str) -> dict[str, Manifest]:
    from ray_app.stages.order import load_stage

    store = Storage(cfg.output)
    return {name: load_stage(name).run(cfg, store) for name in names or STAGES}
