"""The evaluation as one self-contained HTML file: style and plots are inside, nothing is fetched and no script runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ray_app.analysis.evaluate.render_text import column_labels
from ray_app.analysis.evaluate.report import examples, parts, summary
from ray_app.analysis.evaluate.report.page import environment
from ray_app.analysis.evaluate.sampling import SampleSummary
from ray_app.analysis.metrics.evaluation import Evaluation, judged_hash
from ray_app.analysis.metrics.formatting import LABELS
from ray_app.analysis.metrics.protocol import METRICS
from ray_app.base.config import PriceConfig
from ray_app.tables.manifest import Manifest

if TYPE_CHECKING:
    from ray_app.analysis.agreement.agreement_table import AgreementTable
    from ray_app.analysis.experiment.ablation_table import ExperimentTable

_OPTIONAL = {"about": "", "columns": (), "rows": (), "caption": "", "svg": "", "notes": ()}  # of a simulation


def render_report(
    evaluation: Evaluation, *, title: str = "Search relevance report", titles: Mapping[str, str] | None = None,
    experiments: "Sequence[ExperimentTable]" = (), image_of: Callable[[str], str | None] = lambda pin_id: None,
    agreement: "Sequence[AgreementTable]" = (), simulation: Mapping[str, Any] | None = None,
    sample: SampleSummary | None = None, stages: Sequence[Mapping[str, Any]] = (),
    provenance: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Render the report.

    Args:
        titles: pin_id -> title, for the examples; a pin without one is shown by its id.
        image_of: pin_id -> data URI, for the examples; None: no picture.
        agreement: From `agreement_tables`; empty: no such section.
        simulation: `title`, and optionally `about` (text), `columns` and `rows` (texts, or (value, lo, hi)), `caption`,
            `svg` (our own plot: it is not escaped) and `notes` (texts); None: no such section.
        sample: What the teacher labelled; None: no such section.
        provenance: What the figures were made from (config, versions, commit, counts, and what `lineage` adds); shown as
            is, so no secrets.

    Returns:
        HTML. All text from outside (queries, titles, provenance) is escaped.
    """
    titles = titles or {}
    primary_system = evaluation.primary_system
    provenance = dict(provenance or {})
    comparisons = evaluation.differences()
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            evaluation=evaluation,
            settings=evaluation.settings,
            names={s: summary.display_name(s) for s in evaluation.systems},
            colors=parts.colors_of(evaluation),
            metrics=LABELS,
            heads=column_labels(evaluation),
            sentences=[s.replace("AUROC ", "AUROC\N{NO-BREAK SPACE}") for s in summary.summarize(evaluation)],
            meaning=summary.significance_note(evaluation) if comparisons else "",
            key_metrics=summary.key_metrics(evaluation),
            cells={s: {m: evaluation.interval(s, m) for m in METRICS} for s in evaluation.systems},
            standings=summary.standings(evaluation),
            comparisons=comparisons,
            panels=parts.panels(evaluation),
            roc=parts.roc(evaluation),
            reliability=parts.reliability(evaluation),
            confusions=parts.confusions(evaluation),
            changes=parts.changes(evaluation),
            slices=parts.slices(evaluation),
            worst=parts.worst(evaluation, titles),
            primary_system=primary_system,
            primary_system_text=summary.in_text(primary_system),
            graders=[s for s in parts.graded_systems(evaluation) if evaluation.systems[s].probs is not None],
            examples=[asdict(q) for q in examples.example_queries(evaluation, primary_system, titles)],
            disagreements=[asdict(p) for p in examples.worst_disagreements(evaluation, primary_system, titles)],
            experiments=experiments,
            agreement=parts.agreement_blocks(agreement),
            simulation=None if simulation is None else _OPTIONAL | dict(simulation),
            image_of=image_of,
            sample=sample,
            stages=stages,
            judged_hash=judged_hash(evaluation.pairs),
            lineage=provenance.pop("data", {}),
            provenance=provenance,
        )
    )


def stage_row(manifest: Manifest, prices: PriceConfig | None = None) -> dict[str, Any]:
    """A manifest's line in the cost table.

    Money is known for stages that say what they held (`info` has `cost`) when the prices are, as of now.
    """
    info, counts = manifest.info, manifest.counts
    cost = info.get("cost") or info.get("actual", {}).get("cost") or {}
    hours = {name: cost[f"{name}_hours"] for name in ("gpu", "cpu") if cost.get(f"{name}_hours") is not None}
    money = None
    if prices is not None and hours:
        rates = {"gpu": prices.gpu_hour, "cpu": prices.cpu_hour}
        # As in `quote.cost_of`: a GPU's price often includes the CPUs beside it.
        if rates["gpu" if hours.get("gpu") else "cpu"] is not None:
            money = sum(used * (rates[name] or 0.0) for name, used in hours.items())
    return {
        "stage": manifest.stage, "wall_sec": manifest.wall_sec, "device_sec": manifest.device_sec,
        "rows_per_sec": manifest.rows_per_sec, "money": money, "currency": prices.currency if prices is not None else None,
        **{name: counts.get(name) for name in ("rows_in", "rows_out", "rows_quarantined")},
        **{f"{name}_hours": hours.get(name) for name in ("gpu", "cpu")},
    }  # fmt: skip


def lineage(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """For `provenance`: each stage's fingerprint, recipe, commit, and the content of what it read and wrote.

    Equal hashes are equal content, whatever run or folder it lies in.
    """
    stages = {
        manifest.stage: {
            "fingerprint": manifest.fingerprint, "recipe": manifest.info.get("recipe"), "commit": manifest.git_commit,
            "inputs": manifest.inputs, "counts": manifest.counts,
            "outputs": {name: {"content": out.content_hash, "rows": out.rows} for name, out in manifest.outputs.items()},
        }
        for manifest in manifests
    }  # fmt: skip
    return {"data": stages}
