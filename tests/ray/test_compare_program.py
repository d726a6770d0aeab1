"""The program that compares two rankings, on a run whose labels it may use and must complete."""

import csv
import json
import shutil
from pathlib import Path

from pipeline_world import COLOURS, THINGS, write_csv

from pipelines.compare import build_parser, main
from ray_app.base.storage import Storage
from ray_app.tables.manifest import read_manifest, read_output

TOP = 10


def write_rankings(folder: Path) -> None:
    """Treatment shows first what fits the query, control last; both leave out the pin that says nothing."""
    pins = [f"{c}-{t}" for c in COLOURS for t in THINGS][1:]
    for name, sign in (("control", 1), ("treatment", -1)):
        rows = [
            {"query": q, "pin_id": pin, "rank": rank}
            for q in (*THINGS, *COLOURS)
            for rank, pin in enumerate(sorted(pins, key=lambda pin: (sign * (q in pin), pin))[:TOP], 1)
        ]
        write_csv(folder / f"{name}.csv", rows)


def test_it_labels_what_is_missing_once_and_uses_only_human_labels_of_unseen_queries(finished, tmp_path, capsys):
    cfg = finished[0]
    shutil.copytree(cfg.output, tmp_path / "run")
    store = Storage(str(tmp_path / "run"))
    write_rankings(tmp_path)
    manifest = read_manifest(store, "train_teacher")
    assert manifest is not None
    splits = read_output(store, manifest.outputs["splits"])["split"].to_pylist()

    def run(*more: str) -> dict:
        files = ["--control", str(tmp_path / "control.csv"), "--treatment", str(tmp_path / "treatment.csv")]
        args = build_parser().parse_args(["--config", "", "--locale", "en_us", *files, *more])
        main(cfg.model_copy(update={"output": store.uri}), store, args)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    unseen = run()
    assert unseen["num_queries"] == splits.count("test") == unseen["num_human_queries"]
    assert unseen["num_trained"] == len(splits) - splits.count("test")

    first = run("--include-training-queries", "--k", "5")
    again = run("--include-training-queries", "--k", "5")
    assert first["num_labelled_now"] > 0
    assert again["num_labelled_now"] == 0
    assert again["num_pairs"] == first["num_pairs"] > first["num_labelled_now"]
    assert again["metrics"] == first["metrics"]
    assert first["num_human_queries"] == len(splits)
    difference = next(f for f in first["metrics"] if f["of"] == "difference" and f["metric"] == "P@5")
    assert difference["human_only"]["value"] == 1.0  # five of six pins fit, and control shows none of them
    assert "looks better than it is" in first["cautions"][-1]

    # The same queries without human labels: these are what humans are asked to grade.
    label = {"query": "no such", "pin_id": "red-mug", "rater_id": "x", "grade": 5, "locale": "en-US"}
    write_csv(tmp_path / "few.csv", [label])
    asked = run("--include-training-queries", "--human-labels", str(tmp_path / "few.csv"), "--num-next-queries", "5")
    with Path(asked["next"]["pairs"]).open(encoding="utf-8-sig") as file:
        pairs = list(csv.DictReader(file))
    chosen = {row["query"] for row in pairs}
    shown = set()
    for name in ("control", "treatment"):
        with (tmp_path / f"{name}.csv").open() as file:
            shown |= {(row["query"], row["pin_id"]) for row in csv.DictReader(file) if row["query"] in chosen}
    assert len(chosen) == 5
    assert sorted((row["query"], row["pin_id"]) for row in pairs) == sorted(shown)

    # The sheet as it was written, filled in, is what --human-labels takes.
    for row in pairs:
        row["grade"] = "5" if row["query"] in row["pin_id"] else "1"
    with Path(asked["next"]["pairs"]).open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(pairs[0]))
        writer.writeheader()
        writer.writerows(pairs)
    assert run("--include-training-queries", "--human-labels", asked["next"]["pairs"])["num_human_queries"] == 5
