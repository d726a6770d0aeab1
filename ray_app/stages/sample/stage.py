"""Choose the pairs that the teacher labels, bucket by bucket."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.schemas import PUBLIC_QUERIES, cast_to
from ray_app.base.storage import Storage, StoredFile
from ray_app.base.text import TEXT_VERSION, normalize_query, query_group
from ray_app.cluster.buckets import map_buckets
from ray_app.cluster.catalogue_tables import CatalogueTables
from ray_app.cluster.retrain import RetrainPolicy
from ray_app.features.lexical import FEATURES_VERSION
from ray_app.features.query_table import QueryTable
from ray_app.sources.held_out import HeldOut
from ray_app.stages.sample.effective_size import WeightSums
from ray_app.stages.sample.log_events import LogEvents, LogUse, count_queries, newest_event
from ray_app.stages.sample.pair_sources import SOURCES
from ray_app.stages.sample.pilot import Deviations, pilot_outputs, read_deviations
from ray_app.stages.sample.sampled_catalogue import SampledCatalogue
from ray_app.stages.sample.sampler import Sampler, SampleRules, Selection
from ray_app.stages.sample.scratch import Scratch
from ray_app.stages.sample.window import Window
from ray_app.tables.buckets import bucketed_output, choose_num_buckets, write_bucket
from ray_app.tables.manifest import (
    Bucket,
    Manifest,
    Output,
    read_manifest,
    read_output,
    read_output_files,
    require_output,
)
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

VERSION = 4
_ROWS_PER_PART, _MAX_PARTS = 1_000_000, 1024
_MOST_TRENDING = 20  # listed in the manifest


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `pairs`, `queries` (`QueryTable`, theirs), and `public_queries`, those of the log that others may be shown.

    The manifest's info has the strata, the counts by source, and notes on what could not be as asked. With a window only its
    events are sampled. Queries of `evaluate.human_labels` are left out like those of the test split. An earlier run's labels are
    inputs, that run's place is not a setting.
    """
    needed = {
        "search_log": "ingest", "human_labels": "ingest", "splits": "train_teacher", "zero_shot_queries": "zero_shot",
    }  # fmt: skip
    inputs = {name: require_output(store, stage, name) for name, stage in needed.items()}
    tables = CatalogueTables.of(cfg, store)
    pilot = Storage(cfg.sample.pilot) if cfg.sample.pilot else None
    pilot_tables = pilot_outputs(pilot, store) if pilot else []
    judged = HeldOut.of(cfg)
    stage = Stage(
        name="sample",
        version=VERSION,
        inputs=[*inputs.values(), *tables.outputs, *pilot_tables, *judged.inputs],
        recipe=[
            cfg.sample.model_copy(update={"pilot": None}), cfg.pin_text, cfg.seed, TEXT_VERSION,
            cfg.enrich.min_clients, cfg.enrich.count_events_without_client, cfg.features.max_terms, FEATURES_VERSION,
        ],
        compute=partial(_sample, tables=tables, inputs=inputs, judged=judged, pilot=pilot, pilot_tables=pilot_tables),
        retrain_policy=RetrainPolicy.of(cfg, tables.pin_texts, "pin_texts", "zero_shot_pins"),
    )  # fmt: skip
    return run_stage(stage, cfg, store)


def _sample(
    run: StageRun, tables: CatalogueTables, inputs: dict[str, Output], judged: HeldOut, pilot: Storage | None,
    pilot_tables: list[Output],
) -> StageResult:  # fmt: skip
    cfg, store, log = run.cfg, run.store, inputs["search_log"]
    # A window that ends where the log does; else the log's end is not asked for.
    newest = newest_event(store, log) if cfg.sample.days is not None and cfg.sample.until is None else None
    window = Window.of(cfg.sample, newest, _present(store))
    events = LogEvents(store=store, output=log, window=window)
    used = LogUse.of(map_buckets(partial(events.use, tables.pin_texts), range(log.num_buckets)))
    if window is not None and not used.num_rows:
        raise window.no_event(used.oldest, used.newest)
    deviations = read_deviations(pilot, pilot_tables) if pilot else None
    held_out, labelled = split_roles(read_output(store, inputs["splits"]), read_output(store, inputs["human_labels"]))
    rules = SampleRules(
        cfg=cfg.sample,
        seed=(cfg.seed if window is None else window.seed(cfg.seed)) % 2**64,
        excluded_groups=frozenset(map(query_group, held_out | judged.queries)),
        boosts=dict.fromkeys(labelled, cfg.sample.labelled_query_boost),
        min_clients=cfg.enrich.min_clients,
        with_trends=window is not None,
        deviations=deviations,
    )
    scratch = Scratch(store, None if tables.num_buckets == 1 else f"tmp/sample/{run.fingerprint}")
    source = SampledCatalogue(tables, events, scratch)
    sampler = Sampler(source, scratch, rules, _num_parts(cfg, log, tables.num_buckets))
    try:
        rows_of = partial(
            count_queries, events=events, pin_texts=tables.pin_texts, enrich=cfg.enrich, judged=judged,
            only_impressions=used.has_impressions, min_type_pins=cfg.sample.product_type_min_pins,
        )  # fmt: skip
        selection = sampler.select(rows_of)
        source.keep_vectors(inputs["zero_shot_queries"], selection.queries)
        folder = run.table_folder("pairs")
        drawn = sampler.draw(selection, partial(_write_pairs, store, folder, cfg.tables.rows_per_file))
        out = run.add_table(bucketed_output("pairs", folder, (bucket for bucket, _ in drawn.written)))
        public = _write_parts(run, "public_queries", sampler.num_parts, partial(_public_queries, sampler))
        _write_parts(run, "queries", sampler.num_parts, partial(_queries, sampler, source))
    finally:
        scratch.delete()
    info = _describe_window(window, used, selection, partial(_public_among, store, public))
    info |= _describe_allocation(cfg, deviations)
    sums = [found for _, found in drawn.written]
    by_source = sum((found.by_source for found in sums), Counter[str]())
    info |= {
        "strata": describe_strata(drawn.population, [found.by_stratum for found in sums]),
        "num_product_types": selection.num_types,
        "num_by_source": {name: by_source[name] for name in SOURCES},
        "num_queries": drawn.num_queries,
        **WeightSums.merged([found for part in sums for found in part.by_stratum.values()]).described,
    }
    if note := used.note:
        info["source_note"] = note
    # Sampling makes rows, it maps none: what comes in is what was drawn.
    counts = {"rows_in": out.rows, "rows_out": out.rows, "rows_quarantined": 0}
    return StageResult(counts=counts | {"log_rows": used.num_rows, "public_queries": public.rows}, info=info)


def _num_parts(cfg: Config, log: Output, num_buckets: int) -> int:
    """So many that a part's queries, and their candidates, are about a million rows."""
    if num_buckets == 1:
        return 1
    num_candidates = min(cfg.sample.max_queries, log.rows) * 2 * cfg.sample.depth
    return min(max(2, choose_num_buckets(max(log.rows, num_candidates), _ROWS_PER_PART)), _MAX_PARTS)


@dataclass(frozen=True, kw_only=True)
class _BucketSums:
    """Of a bucket's drawn pairs."""

    by_stratum: dict[str, WeightSums]
    by_source: Counter[str]


def _write_pairs(
    store: Storage, folder: str, rows_per_file: int, number: int, pairs: pa.Table
) -> tuple[Bucket, _BucketSums]:
    bucket = write_bucket(store, folder, number, pairs, rows_per_file)
    weights: dict[str, list[float]] = {}
    for name, prob in zip(pairs["stratum"].to_pylist(), pairs["inclusion_prob"].to_pylist(), strict=True):
        weights.setdefault(name, []).append(1.0 / prob)
    by_stratum = {name: WeightSums.of(drawn) for name, drawn in weights.items()}
    return bucket, _BucketSums(by_stratum=by_stratum, by_source=Counter(pairs["source"].to_pylist()))


def describe_strata(population: Counter[str], drawn: Sequence[dict[str, WeightSums]]) -> list[dict[str, Any]]:
    """Size of each stratum in the population and in the sample.

    Args:
        population: Pairs by stratum.
        drawn: Of each bucket, the sampled ones by stratum.

    Returns:
        One dict per stratum: `stratum`, `num_pairs` (how many there are; estimated where queries were drawn), `num_sampled`,
        `estimated_pairs` (the sum of 1 / inclusion_prob, which estimates `num_pairs`), `effective_size` of those sampled, and
        `design_effect` (None: none was sampled).
    """
    found = []
    for name in sorted(population):
        sums = WeightSums.merged([part[name] for part in drawn if name in part])
        found.append(
            {
                "stratum": name,
                "num_pairs": max(round(population[name]), sums.num),
                "num_sampled": sums.num,
                "estimated_pairs": round(sums.total, 1),
                **sums.described,
            }
        )
    return found


def _write_parts(run: StageRun, name: str, num_parts: int, make: Callable[[int], pa.Table]) -> Output:
    """Write a table by query, one file per part."""
    folder = run.table_folder(name)

    def write(number: int) -> tuple[StoredFile, int]:
        table = make(number)
        return run.store.write_table(f"{folder}/part-{number:05d}.parquet", table), table.num_rows

    written = map_buckets(write, range(num_parts))
    return run.add_output(name, folder, [file for file, _ in written], rows=sum(rows for _, rows in written))


def _public_queries(sampler: Sampler, number: int) -> pa.Table:
    return cast_to(sampler.public_queries(number), PUBLIC_QUERIES, "sample")


def _queries(sampler: Sampler, source: SampledCatalogue, number: int) -> pa.Table:
    """What features read of a part's queries, each once whatever its locales."""
    return QueryTable.of(*sampler.matches(number, source.vectors)).table


def _public_among(store: Storage, public: Output, queries: Collection[str]) -> set[str]:
    """Those of some queries that others may be shown."""
    wanted = pa.array(sorted(queries), pa.string())
    parts = (part["query"] for part in read_output_files(store, public, ["query"]))
    return {query for part in parts for query in part.filter(pc.is_in(part, value_set=wanted)).to_pylist()}


def _present(store: Storage) -> datetime:
    """Time at which the log was read, as recorded by ingest.

    Raises:
        UserError: an older version, which did not note it, read the log.
    """
    ingest = read_manifest(store, "ingest")
    assert ingest is not None, "its outputs are inputs"
    if "present" not in ingest.info:
        raise UserError(
            "sample: ingest of an older version did not note when it read the search log; run "
            "`python pipelines/ingest.py --config ...` again"
        )
    return datetime.fromisoformat(ingest.info["present"])


def _describe_window(
    window: Window | None, used: LogUse, selection: Selection, public: Callable[[Collection[str]], set[str]]
) -> dict[str, Any]:
    """What the manifest says of the window and the trends. It names the `public` queries only: the report shows them."""
    if window is None:
        return {}
    shown = public({found.query for found in selection.trending})
    info: dict[str, Any] = {
        "window": {"since": _iso(window.since), "until": _iso(window.until), "num_before": used.num_before},
        "num_trending": len(selection.trending),
        "trending": [asdict(found) for found in selection.trending if found.query in shown][:_MOST_TRENDING],
    }
    if not used.num_before:
        info["window_note"] = "the log has no event before the window, so no query can be called trending"
    return info


def _describe_allocation(cfg: Config, deviations: Deviations | None) -> dict[str, Any]:
    info: dict[str, Any] = {"allocation": cfg.sample.allocation}
    if deviations is not None:
        info["deviations"] = asdict(deviations)
    elif cfg.sample.allocation == "neyman":
        reason = "the pilot has no labels of the log that differ" if cfg.sample.pilot else "sample.pilot names no run"
        info["allocation_note"] = f"{reason}: the strata's deviations were taken as equal, so rates are proportional"
    return info


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def split_roles(splits: pa.Table, labels: pa.Table) -> tuple[set[str], set[tuple[str, str]]]:
    """Queries held out for evaluation, and the (query, locale) of the training queries, from `train_teacher`'s splits."""
    split_of = {
        normalize_query(query): split
        for query, split in zip(splits["query"].to_pylist(), splits["split"].to_pylist(), strict=True)
    }
    held_out = {query for query, split in split_of.items() if split == "test"}
    labelled = zip(labels["query"].to_pylist(), labels["locale"].to_pylist(), strict=True)
    wanted = {(normalize_query(q), locale) for q, locale in labelled if split_of.get(normalize_query(q)) == "train"}
    return held_out, wanted
