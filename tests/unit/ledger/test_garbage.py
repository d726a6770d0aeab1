"""Garbage collection deletes what nothing names, and nothing else."""

from pathlib import Path

import pyarrow as pa
import yaml

from ray_app.config import load_config
from ray_app.ledger.garbage import collect_all
from ray_app.ledger.ledger import Ledger
from ray_app.manifest import StageRun, read_manifest, read_output
from ray_app.schemas import SOFT_LABEL_RESULTS
from ray_app.storage import Storage


def labels(*keys: str) -> pa.Table:
    return pa.Table.from_pylist(
        [{"content_key": key, "probs": [0.2] * 5, "error": None} for key in keys], schema=SOFT_LABEL_RESULTS
    )


def test_current_outputs_and_their_ledger_rows_stay_and_the_rest_goes(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump(
            {
                "output": str(tmp_path / "run"),
                "ingest": {"pins": {"adapter": "table", "path": "p.csv"}},
                "features": {"zero_shot_model": "m"},
                "teach": {"base_model": "m"},
                "distill": {"base_model": "m"},
            }
        )
    )
    cfg = load_config(tmp_path / "c.yaml")
    store = Storage(cfg.output)
    ledger = Ledger(store, "soft_labels", "r1", SOFT_LABEL_RESULTS)
    ledger.commit(labels("old", "kept"))
    Ledger(store, "soft_labels", "r0", SOFT_LABEL_RESULTS).commit(labels("older"))
    for version, key in ((1, "old"), (2, "kept")):
        run = StageRun("label", cfg, store, version, [], [])
        run.write_table("soft_labels", labels(key))
        run.finish({"rows_out": 1})

    counts = collect_all(store)

    assert (counts.folders, counts.ledger_rows) == (1, 2)
    manifest = read_manifest(store, "label")
    assert manifest is not None
    assert read_output(store, manifest.outputs["soft_labels"])["content_key"].to_pylist() == ["kept"]
    assert ledger.present_keys().to_pylist() == ["kept"]
