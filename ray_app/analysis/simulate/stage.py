"""simulate: two students rank the same searches of the demo world, and people click -> simulate/ under the output."""

import logging
from functools import partial
from typing import Any

import numpy as np

from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.simulate.by_country import compare_arms
from ray_app.analysis.simulate.outcome import outcomes
from ray_app.analysis.simulate.plot import trade_off_svg
from ray_app.analysis.simulate.scoring import Arms, Scored, ScoringRequest
from ray_app.analysis.simulate.simulation_tables import (
    country_markdown,
    country_rows,
    report_section,
    rows_as_csv,
    trade_markdown,
    trade_rows,
)
from ray_app.analysis.simulate.trade_off import RankerScores, learn_engagement, people, trade_offs
from ray_app.analysis.simulate.traffic import Retrieved, Traffic, draw_traffic, retrieve
from ray_app.base.config import Config, DemoConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.text import TEXT_VERSION
from ray_app.cluster.catalogue_tables import load_catalogue
from ray_app.cluster.encoders import student_tower, zero_shot_tower
from ray_app.cluster.tasks import results_of, shared, start_task
from ray_app.demo.facts import pin_id
from ray_app.features.catalogue import Catalogue
from ray_app.features.student import STUDENT_FEATURES_VERSION, feature_inputs
from ray_app.models.text_encoder import stage_dtype
from ray_app.tables.manifest import Manifest, Output, read_manifest, read_output, require_output
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

logger = logging.getLogger(__name__)

VERSION = 1
FOLDER = "simulate"
_QUERIES_PER_TASK = 1000  # guessed: scoring takes a core some 2 s, a process 3 s to start


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `simulate/`: simulation.json, by_country and tradeoff as CSV and Markdown, and tradeoff.svg.

    The manifest's info holds both tables as text, and the gains over all searches.

    Raises:
        UserError: the run is not of the demo world, its world has other settings, or an earlier stage has not run.
    """
    demo = _world(cfg, store)
    control, treatment = (require_output(store, "distill", name) for name in ("feature_only_student", "student"))
    labels = require_output(store, "ingest", "human_labels")
    catalogue, read_from = load_catalogue(cfg, store)
    stage = Stage(
        name="simulate",
        version=VERSION,
        inputs=[*read_from, labels, control, treatment, *feature_inputs(cfg, store)],
        recipe=[
            cfg.simulate, demo, stage_dtype(cfg.embed), cfg.evaluate.num_resamples, cfg.evaluate.confidence_level,
            TEXT_VERSION, STUDENT_FEATURES_VERSION,
        ],
        compute=partial(
            _simulate, demo=demo, labels=labels, control=control, treatment=treatment, catalogue=catalogue
        ),
    )  # fmt: skip
    return run_stage(stage, cfg, store)


def _simulate(
    run: StageRun, demo: DemoConfig, labels: Output, control: Output, treatment: Output, catalogue: Catalogue
) -> StageResult:
    cfg, store, simulate = run.cfg, run.store, run.cfg.simulate
    settings = EvaluationSettings(
        samples=cfg.evaluate.num_resamples, confidence_level=cfg.evaluate.confidence_level, seed=simulate.seed
    )
    before, traffic = draw_traffic(demo, simulate)
    found, rows = known_candidates(retrieve(demo, traffic.queries, simulate.candidates), catalogue, demo)
    scores = score_candidates(cfg, store, catalogue, traffic, found, rows, control, treatment)
    plain, lured = people(demo.seed, demo.num_pins, simulate)
    labelled = sorted(set(read_output(store, labels, ["locale"])["locale"].to_pylist()))
    logger.info("simulate: %d searches meet both arms", len(traffic.search))
    slices = {
        who: compare_arms(
            traffic, outcomes(scores.control, traffic, found, users), outcomes(scores.treatment, traffic, found, users),
            labelled, settings,
        )
        for who, users in (("as_in_the_log", plain), ("with_clickbait", lured))
    }  # fmt: skip
    engagement, log = learn_engagement(before, found, scores, lured, simulate, demo.seed)
    points = list(trade_offs(traffic, found, scores, engagement, lured, simulate, settings))

    countries = {who: country_rows(parts) for who, parts in slices.items()}
    traded, main = trade_rows(points), slices["as_in_the_log"]
    texts = {
        "by_country.csv": rows_as_csv([{"people": who} | row for who, table in countries.items() for row in table]),
        "by_country.md": country_markdown(main, settings),
        "tradeoff.csv": rows_as_csv(traded),
        "tradeoff.md": trade_markdown(points, settings, has_clickbait=bool(lured.click_prob.any())),
        "tradeoff.svg": trade_off_svg(points),
    }
    counts = {
        "rows_in": int(found.is_pin.sum()), "rows_out": len(scores.features), "queries": len(traffic.queries),
        "searches": len(traffic.search), "num_logged_searches": len(before.search), "logged_clicks": log.num_clicks,
        "clickbait_pins": int((lured.click_prob > 0).sum()),
    }  # fmt: skip
    document = {
        "counts": counts, "by_country": countries, "tradeoff": traded, "labelled_locales": labelled,
        "settings": simulate.model_dump(mode="json"), "confidence_level": settings.confidence_level, "samples": settings.samples,
    }  # fmt: skip
    files = [store.write_bytes(f"{FOLDER}/{name}", text.encode()) for name, text in texts.items()]
    files.append(store.write_json(f"{FOLDER}/simulation.json", document))
    run.add_output("simulation", FOLDER, files)
    info = {
        "tables": [texts["by_country.md"], texts["tradeoff.md"]], "all_searches": countries["as_in_the_log"][0],
        "report": report_section(main, settings, texts["tradeoff.svg"]),
    }  # fmt: skip
    return StageResult(counts=counts, info=info)


def _world(cfg: Config, store: Storage) -> DemoConfig:
    """The world whose ground truth the people act by; UserError: there is none, or it is not the one that the run was made from."""
    if cfg.demo is None:
        raise UserError(
            "simulate: the config has no section `demo`; people act by a known truth, which only the demo dataset has: "
            "use configs/demo.yaml"
        )
    made = read_manifest(store, "demo")
    if made is None or made.config.get("demo") != cfg.demo.model_dump(mode="json"):
        raise UserError(
            "simulate: the run has no world with these settings of `demo`; run `python pipelines/run_all.py --config ...` first"
        )
    return cfg.demo


def known_candidates(found: Retrieved, catalogue: Catalogue, demo: DemoConfig) -> tuple[Retrieved, np.ndarray]:
    """The candidates that the catalogue has, and the catalogue's row of each pin number, -1 where it has none."""
    row_of = {name: row for row, name in enumerate(catalogue.pin_texts["pin_id"].to_pylist())}
    rows = np.array([row_of.get(pin_id(number), -1) for number in range(demo.num_pins)], np.int64)
    return found.only(rows >= 0), rows


def score_candidates(
    cfg: Config, store: Storage, catalogue: Catalogue, traffic: Traffic, found: Retrieved, rows: np.ndarray,
    control: Output, treatment: Output,
) -> RankerScores:  # fmt: skip
    """Both students' scores of all candidates, in Ray tasks."""
    query, column = np.nonzero(found.is_pin)
    texts = traffic.texts
    request = ScoringRequest(
        texts=texts, locales=traffic.locales, query_vectors=student_tower(cfg, store, treatment, "query").encode(texts),
        zero_shot=zero_shot_tower(cfg, store, "query").encode(texts), query_index=query,
        pin_index=rows[found.pins[query, column]],
    )  # fmt: skip
    # Most pins have their vectors since `embed`; a pin that has none gets it here.
    pin_vectors = shared(
        student_tower(cfg, store, treatment, "pin").encode(catalogue.pairs.rendered, catalogue.pairs.pin_ids)
    )

    def score(part: ScoringRequest, vectors: Any) -> Scored:
        return Arms.load(cfg, store, control, treatment, vectors).score(part)

    starts = range(0, len(texts), _QUERIES_PER_TASK)
    tasks = [
        start_task(score, request.of_queries(at, at + _QUERIES_PER_TASK), pin_vectors, torch_threads=1) for at in starts
    ]
    parts: list[Scored] = results_of(tasks)
    grids = np.zeros((2, *found.pins.shape))
    for grid, name in zip(grids, ("control", "treatment"), strict=True):
        grid[query, column] = np.concatenate([getattr(part, name) for part in parts])
    return RankerScores(
        control=grids[0], treatment=grids[1], features=np.concatenate([part.features for part in parts])
    )
