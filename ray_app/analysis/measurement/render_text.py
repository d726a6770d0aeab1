"""A comparison in plain words, and as JSON."""

from collections.abc import Sequence
from typing import Any

from ray_app.analysis.measurement.compare import CONTROL, DIFFERENCE, Comparison, Line
from ray_app.analysis.measurement.power_analysis import PowerAnalysis
from ray_app.analysis.measurement.prediction_powered import Estimate
from ray_app.analysis.measurement.study_design import StudyDesign
from ray_app.analysis.metrics.formatting import aligned, plain, with_bounds

FEW_LABELS = 30  # below, the intervals are known to be too narrow (see `ppi_mean`)
ASSUMPTIONS = (
    "the files' queries are a random sample of the traffic (each counts once)",
    "humans labelled a random sample of each stratum: labels do not show that, and results are wrong if they were picked by hand",
    "nDCG0 is 0 for a query without a relevant pin, in both rankings; the nDCG of evaluate's reports leaves such queries out",
    "humans graded the results of both rankings, not of one; ungraded results contribute no gain",
    "the teacher was not trained on the queries whose human labels are used",
)


def render_comparison(found: Comparison, notes: Sequence[str] = ()) -> str:
    """Text for terminals: what was measured, the table, what it means, the plan, cautions and assumptions."""
    paired, settings = found.paired, found.settings
    confidence_level = f"{settings.confidence_level:.0%}"
    heading = [
        f"control {paired.control.name}, treatment {paired.treatment.name}; [{confidence_level} intervals]",
        f"{len(found.queries):,} queries judged by the teacher, {int(found.labelled.sum()):,} of them by humans too",
        *_left_out(found),
    ]
    cells = [["", "", "teacher + humans", "humans alone", "teacher alone", "judged: teacher", "humans"]]
    for line in found.lines:
        sign = "+" if line.of == DIFFERENCE else ""
        shares = ["" if s is None else f"{s:.1%}" for s in (line.judged_teacher, line.judged_humans)]
        estimates = [
            "-" if e is None else with_bounds(e.interval, f"{sign}.4f")
            for e in (line.prediction_powered, line.human_only, line.teacher)
        ]
        cells.append([line.metric.name if line.of == CONTROL else "", line.of, *estimates, *shares])
    verdicts = [_verdict(line) for line in found.lines if line.of == DIFFERENCE]
    planned = zip(settings.metrics, found.power_analyses, strict=True)
    power_analyses = [text for metric, analysis in planned for text in _power_text(metric.name, analysis)]
    cautions = [f"CAUTION: {text}" for text in (*_cautions(found), *notes)]
    assumed = ["these figures assume:", *(f"- {text}" for text in ASSUMPTIONS)]
    return "\n".join([*heading, "", *aligned(cells), "", *verdicts, *power_analyses, *cautions, "", *assumed])


def comparison_json(found: Comparison, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The same for programs."""
    paired, settings = found.paired, found.settings
    return {
        "control": paired.control.name, "treatment": paired.treatment.name, "num_queries": len(found.queries),
        "num_human_queries": int(found.labelled.sum()), "num_in_one_file": paired.num_unpaired,
        "num_trained": paired.num_trained, "num_unjudged": found.num_unjudged, "num_few_grades": found.num_few_grades,
        "confidence_level": settings.confidence_level, "metrics": [_line_json(line) for line in found.lines],
        "power_analyses": [_power_json(analysis) for analysis in found.power_analyses if analysis is not None],
        "cautions": [*_cautions(found), *notes], "assumptions": list(ASSUMPTIONS),
    }  # fmt: skip


def _left_out(found: Comparison) -> list[str]:
    paired, lines = found.paired, []
    if paired.num_unpaired:
        lines.append(f"{paired.num_unpaired:,} queries are in one file only")
    if paired.num_trained:
        lines.append(f"{paired.num_trained:,} queries are left out: the teacher was trained on them or near-duplicates")
    if found.num_unjudged:
        share = f"{found.settings.max_unjudged:.0%} of a top {found.settings.depth}"
        lines.append(f"{found.num_unjudged:,} queries are left out: the teacher has no labels for more than {share}")
    return lines


def _cautions(found: Comparison) -> list[str]:
    labelled, texts = int(found.labelled.sum()), []
    if labelled < 2:
        texts.append("too few human labels to correct the teacher: its figures stand alone, with all its errors")
    elif labelled < FEW_LABELS:
        texts.append(f"{labelled} queries with human labels: below {FEW_LABELS} the intervals are too narrow")
    if found.num_few_grades:
        texts.append(
            f"{found.num_few_grades} queries with human labels do not count, as humans graded too few of the top pins; where "
            "that is because only one ranking was graded, what is left leans towards that one, or to no difference"
        )
    if found.num_unjudged:
        texts.append("queries that are left out for lack of labels are no random ones")
    return texts


def _verdict(line: Line) -> str:
    name, found = line.metric.name, line.prediction_powered or line.teacher
    by = "" if line.prediction_powered else " by the teacher alone, which may be wrong"
    value, lo, hi = found.interval
    if value is None or lo is None or hi is None:
        return f"{name}: no query differs{by}" if not value else f"{name}: every query differs alike{by}"
    if lo > 0 or hi < 0:
        return f"{name}: treatment is {'better' if lo > 0 else 'worse'}{by}, by {with_bounds(found.interval, '+.4f')}"
    return f"{name}: no difference is shown{by}; it lies between {lo:+.4f} and {hi:+.4f}"


def _power_text(name: str, analysis: PowerAnalysis | None) -> list[str]:
    if analysis is None:
        return []
    start = f"to see a difference of {analysis.mde:g} in {name}"
    alone = "not even all are enough" if analysis.human_only is None else f"{analysis.human_only.num_labelled:,}"
    guess = " (guessed from the teacher's figures: there are no human ones)" if analysis.assumed else ""
    if analysis.with_teacher is None:
        return [
            f"{start}, these queries are too few even if humans label all; about {analysis.num_required_queries:,} would do{guess}"
        ]
    needed = f"{start}, humans must label {analysis.with_teacher.num_labelled:,} queries; without the teacher: {alone}{guess}"
    spread = zip(analysis.strata, analysis.with_teacher.by_stratum.tolist(), strict=True)
    return [needed, f"  spread as {', '.join(f'{name} {count:,}' for name, count in spread)}"]


def _line_json(line: Line) -> dict[str, Any]:
    return {
        "metric": line.metric.name, "of": line.of, "prediction_powered": _estimate_json(line.prediction_powered),
        "human_only": _estimate_json(line.human_only), "teacher_only": _estimate_json(line.teacher),
        "judged_teacher": plain(line.judged_teacher), "judged_humans": plain(line.judged_humans),
    }  # fmt: skip


def _estimate_json(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    value, lo, hi = found.interval
    return {
        "value": plain(value), "lo": plain(lo), "hi": plain(hi), "std_error": plain(found.std_error),
        "power_tuning_weight": plain(found.power_tuning_weight), "merged_strata": found.merged_strata,
    }  # fmt: skip


def _power_json(analysis: PowerAnalysis) -> dict[str, Any]:
    def of(design_study: StudyDesign | None) -> dict[str, Any] | None:
        if design_study is None:
            return None
        by = dict(zip(analysis.strata, design_study.by_stratum.tolist(), strict=True))
        return {"num_labelled": design_study.num_labelled, "mde": plain(design_study.mde), "by_stratum": by}

    return {
        "metric": analysis.metric.name, "mde": analysis.mde, "with_teacher": of(analysis.with_teacher),
        "human_only": of(analysis.human_only), "num_required_queries": analysis.num_required_queries, "assumed": analysis.assumed,
    }  # fmt: skip
