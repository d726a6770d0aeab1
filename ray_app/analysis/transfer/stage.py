"""transfer: measure the student's embeddings on related pins, boards and next saves, on boards that nothing has read."""

import logging
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.analysis.metrics.judgments import evaluation_settings
from ray_app.analysis.transfer.render_text import STUDENT, transfer_table
from ray_app.analysis.transfer.systems import System, bm25, popularity, random_vectors, vectors
from ray_app.analysis.transfer.tasks import Saves, build_tasks, held_out_boards, readable
from ray_app.analysis.transfer.transfer_metrics import measure, metrics_table
from ray_app.base.columns import aligned, matrix_or_zero
from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.text import TEXT_VERSION, render_pin_texts
from ray_app.cluster.encoders import CachedEncoder, student_tower, title_and_text, zero_shot_tower
from ray_app.cluster.tasks import results_of, start_task
from ray_app.features.query_tower import QueryTower
from ray_app.models.encoder_usage import Role
from ray_app.stages.enrich.board_titles import title_forms, titled_saves, top_board_titles
from ray_app.stages.graph.edges import board_edges
from ray_app.stages.graph.sage import Graph, train
from ray_app.tables.manifest import Manifest, Output, read_manifest, read_output, require_output
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

logger = logging.getLogger(__name__)

VERSION = 2

BASE = "base encoder"
ROLES: tuple[Role, Role] = ("pin", "query")


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """Tables that systems may read."""

    texts: pa.Table  # PIN_TEXTS without the titles of held-out boards, by pin_id
    boards: pa.Table  # BOARDS without the held-out ones
    titles: list[str]  # of the held-out boards, "" without one; the queries


class Towers(NamedTuple):
    """Encoders with their ledgers, of pins and of queries each."""

    pin: CachedEncoder  # the student's
    query: CachedEncoder
    base_pin: CachedEncoder  # what the student started from
    base_query: CachedEncoder
    zero_shot_pin: CachedEncoder  # as the run's features use it
    zero_shot_query: CachedEncoder


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `transfer_metrics` (system, task, metric, value, lo, hi, ...); a table of them is `info["table"]`.

    Raises:
        UserError: a stage has not run, or no board can be held out.
    """
    student = require_output(store, "distill", "student")
    pin_texts = require_output(store, "enrich", "pin_texts")
    boards = require_output(store, "ingest", "boards")
    towers = Towers(
        *(student_tower(cfg, store, student, role) for role in ROLES), *(base_tower(cfg, store, role) for role in ROLES),
        *(zero_shot_tower(cfg, store, role) for role in ROLES),
    )  # fmt: skip
    engagement = _engagement(cfg, store)
    stage = Stage(
        name="transfer",
        version=VERSION,
        inputs=[student, pin_texts, boards, *engagement],
        recipe=[
            cfg.transfer, cfg.enrich, cfg.pin_text, cfg.features, cfg.graph, cfg.seed, TEXT_VERSION,
            cfg.evaluate.num_resamples, cfg.evaluate.confidence_level, *(tower.recipe for tower in towers),
        ],
        compute=partial(_measure, pin_texts=pin_texts, boards=boards, towers=towers, engagement=engagement),
    )  # fmt: skip
    return run_stage(stage, cfg, store)


def _measure(run: StageRun, pin_texts: Output, boards: Output, towers: Towers, engagement: list[Output]) -> StageResult:
    cfg, store = run.cfg, run.store
    all_texts, all_boards = read_output(store, pin_texts).sort_by("pin_id"), read_output(store, boards)
    saves = Saves.of(all_boards, all_texts["pin_id"].to_pylist())
    held_out = held_out_boards(saves, cfg.transfer, cfg.seed)
    if len(held_out) < 2:
        raise UserError(
            f"transfer: {len(saves.board_ids)} boards have known pins, and {len(held_out)} of them can be held out, with "
            f"transfer.min_saves {cfg.transfer.min_saves} and transfer.holdout_fraction {cfg.transfer.holdout_fraction}; it needs "
            "two or more: give ingest.boards more boards, or change these settings"
        )
    kept = readable(all_boards, saves, held_out)
    material = Material(
        texts=without_boards(all_texts, kept, cfg.enrich.top_boards), boards=kept,
        titles=[saves.titles[i] for i in held_out],
    )  # fmt: skip
    systems, marks = _systems(cfg, store, material, towers, engagement)
    tasks = build_tasks(saves, held_out, cfg.transfer, cfg.seed)
    results = measure(tasks, systems, len(held_out), cfg.transfer.recall_at, evaluation_settings(cfg))
    table = metrics_table(results, marks)
    run.write_table("transfer_metrics", table)
    names = [system.name for system in systems]
    counts = {
        "rows_in": table.num_rows, "rows_out": table.num_rows, "pins": saves.num_pins, "boards": len(saves.board_ids),
        "saves": len(saves.board), "held_out_boards": len(held_out),
    }  # fmt: skip
    counts |= {f"{task.name.replace(' ', '_')}_queries": len(task) for task in tasks}
    told = transfer_table(results, names, BASE, STUDENT, cfg.transfer.recall_at, marks)
    return StageResult(counts=counts, info={"table": told})


def base_tower(cfg: Config, store: Storage, role: Role) -> CachedEncoder:
    """The language model that the student started from, untrained: pooled and prompted as the student, as many tokens."""
    own = {
        "model": cfg.distill.base_model, "revision": cfg.distill.revision, "pooling": cfg.distill.pooling,
        "query_prompt": cfg.distill.query_prompt, "pin_prompt": cfg.distill.pin_prompt,
        "max_tokens": cfg.distill.max_pin_tokens,
    }  # fmt: skip
    features = cfg.features.model_copy(update={f"zero_shot_{name}": value for name, value in own.items()})
    return zero_shot_tower(cfg.model_copy(update={"features": features}), store, role)


def without_boards(pin_texts: pa.Table, kept: pa.Table, top_boards: int) -> pa.Table:
    """PIN_TEXTS as `enrich` would make them if there were only the boards of `kept`."""
    saves = titled_saves(kept)
    titles = top_board_titles(saves, top_boards, title_forms(saves))
    column = pa.array([titles.get(pin_id) for pin_id in pin_texts["pin_id"].to_pylist()], pa.list_(pa.string()))
    place = pin_texts.column_names.index("board_titles")
    return pin_texts.set_column(place, pin_texts.schema.field(place), column)


def _systems(
    cfg: Config, store: Storage, material: Material, towers: Towers, engagement: list[Output]
) -> tuple[list[System], dict[str, str]]:
    """All that are compared, from what is expected to be the lowest; and what is to be said of some."""
    pin_ids, titles = material.texts["pin_id"], material.titles
    full = render_pin_texts(material.texts, cfg.pin_text)
    short = title_and_text(cfg, material.texts)[1]
    ids = pin_ids.to_pylist()
    zero_shot, zero_shot_titles = towers.zero_shot_pin.encode(short, ids), towers.zero_shot_query.encode(titles)
    graph = None
    if cfg.graph is not None:  # trains while the towers work
        _, board_titles, board, pin = board_edges(material.boards, ids)
        known = towers.zero_shot_query.encode(board_titles)
        graph = start_task(train, board, pin, known, zero_shot, cfg.graph, cfg.seed, torch_threads=1)
    base, base_titles = towers.base_pin.encode(full, ids), towers.base_query.encode(titles)
    num_saves = np.bincount(
        pc.index_in(material.boards["pin_id"], value_set=pin_ids).drop_null().to_numpy(), minlength=len(pin_ids)
    )
    systems = [
        random_vectors("random vectors", len(pin_ids), len(titles), cfg.seed),
        popularity("saves on other boards", num_saves, len(titles)),
        bm25("BM25", full, titles),
        vectors(f"zero-shot encoder on {', '.join(cfg.features.zero_shot_fields)}", zero_shot, zero_shot_titles),
        vectors(BASE, base, base_titles),
        vectors(STUDENT, towers.pin.encode(full, ids), towers.query.encode(titles)),
    ]
    marks: dict[str, str] = {}
    if engagement:
        table, model = engagement
        found = matrix_or_zero(aligned(read_output(store, table), pin_ids)["engagement_embedding"])
        systems.append(vectors("engagement", found, QueryTower.load(store, model).encode(zero_shot_titles)))
        marks["engagement"] = f"learned from the search log; {found.any(1).mean():.0%} of the pins have a vector"
    if graph is not None:
        # The run's own graph has learned from all boards. This one gives pins on no board vectors too, from their texts.
        trained: Graph = results_of([graph])[0]
        systems.append(vectors("graph", trained.pin_vectors, trained.tower.encode(zero_shot_titles)))
        marks["graph"] = "trained here on the other boards' saves"
    return systems, marks


def _engagement(cfg: Config, store: Storage) -> list[Output]:
    """Its vectors and its model, if the run has them."""
    manifest = read_manifest(store, "engagement")
    if cfg.engagement is None or manifest is None:
        return []
    return [manifest.output("engagement_pins"), manifest.output("engagement_model")]
