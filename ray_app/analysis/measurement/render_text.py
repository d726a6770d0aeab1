"""A comparison in plain words, and as JSON."""

from collections.abc import Sequence
from typing import Any

from ray_app.analysis.measurement.compare import CONTROL, DIFFERENCE, Comparison, Line
from ray_app.analysis.measurement.power_analysis import Plan
from ray_app.analysis.measurement.prediction_powered import Estimate
from ray_app.analysis.measurement.study_design import Study
from ray_app.analysis.metrics.formatting import aligned, plain, with_bounds

FEW_LABELS = 30  # below, the intervals are known to be too narrow (see `estimate`)
ASSUMPTIONS = (
    "the files' queries are a random sample of the traffic (each counts once)",
    "humans labelled a random part of each stratum: labels do not show that, and if somebody picked them the figures are wrong",
    "nDCG0 is 0 for a query without a relevant pin, in both rankings; the nDCG of evaluate's reports leaves such queries out",
    "humans graded what both rankings show, not one of them; what nobody graded brings no gain",
    "the teacher was not trained on the queries whose human labels are used",
)


def render_comparison(found: Comparison, notes: Sequence[str] = ()) -> str:
    """Text for terminals: what was measured, the table, what it means, the plan, cautions and assumptions."""
    contest, settings = found.contest, found.settings
    confidence = f"{settings.confidence:.0%}"
    heading = [
        f"control {contest.control.name}, treatment {contest.treatment.name}; [{confidence} intervals]",
        f"{len(found.queries):,} queries judged by the teacher, {int(found.labelled.sum()):,} of them by humans too",
        *_left_out(found),
    ]
    cells = [["", "", "teacher + humans", "humans alone", "teacher alone", "judged: teacher", "humans"]]
    for line in found.lines:
        sign = "+" if line.of == DIFFERENCE else ""
        shares = ["" if s is None else f"{s:.1%}" for s in (line.judged_teacher, line.judged_humans)]
        estimates = [
            "-" if e is None else with_bounds(e.interval, f"{sign}.4f")
            for e in (line.together, line.humans, line.teacher)
        ]
        cells.append([line.figure.name if line.of == CONTROL else "", line.of, *estimates, *shares])
    verdicts = [_verdict(line) for line in found.lines if line.of == DIFFERENCE]
    planned = zip(settings.figures, found.plans, strict=True)
    plans = [text for figure, plan in planned for text in _plan_text(figure.name, plan)]
    cautions = [f"CAUTION: {text}" for text in (*_cautions(found), *notes)]
    assumed = ["these figures assume:", *(f"- {text}" for text in ASSUMPTIONS)]
    return "\n".join([*heading, "", *aligned(cells), "", *verdicts, *plans, *cautions, "", *assumed])


def comparison_json(found: Comparison, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The same for programs."""
    contest, settings = found.contest, found.settings
    return {
        "control": contest.control.name, "treatment": contest.treatment.name, "num_queries": len(found.queries),
        "num_human_queries": int(found.labelled.sum()), "num_in_one_file": contest.num_lone,
        "num_trained": contest.num_trained, "num_unjudged": found.num_unjudged, "num_few_grades": found.num_few_grades,
        "confidence": settings.confidence, "figures": [_line_json(line) for line in found.lines],
        "plans": [_plan_json(plan) for plan in found.plans if plan is not None],
        "cautions": [*_cautions(found), *notes], "assumptions": list(ASSUMPTIONS),
    }  # fmt: skip


def _left_out(found: Comparison) -> list[str]:
    contest, lines = found.contest, []
    if contest.num_lone:
        lines.append(f"{contest.num_lone:,} queries are in one file only")
    if contest.num_trained:
        lines.append(
            f"{contest.num_trained:,} queries are left out: the teacher was trained on them or near-duplicates"
        )
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
    name, found = line.figure.name, line.together or line.teacher
    by = "" if line.together else " by the teacher alone, which may be wrong"
    value, lo, hi = found.interval
    if value is None or lo is None or hi is None:
        return f"{name}: no query differs{by}" if not value else f"{name}: every query differs alike{by}"
    if lo > 0 or hi < 0:
        return f"{name}: treatment is {'better' if lo > 0 else 'worse'}{by}, by {with_bounds(found.interval, '+.4f')}"
    return f"{name}: no difference is shown{by}; it lies between {lo:+.4f} and {hi:+.4f}"


def _plan_text(name: str, plan: Plan | None) -> list[str]:
    if plan is None:
        return []
    start = f"to see a difference of {plan.change:g} in {name}"
    alone = "not even all are enough" if plan.humans_alone is None else f"{plan.humans_alone.num_labelled:,}"
    guess = " (guessed from the teacher's figures: there are no human ones)" if plan.assumed else ""
    if plan.with_teacher is None:
        return [
            f"{start}, these queries are too few even if humans label all; about {plan.num_queries_needed:,} would do{guess}"
        ]
    needed = (
        f"{start}, humans must label {plan.with_teacher.num_labelled:,} queries; without the teacher: {alone}{guess}"
    )
    spread = zip(plan.strata, plan.with_teacher.by_stratum.tolist(), strict=True)
    return [needed, f"  spread as {', '.join(f'{name} {count:,}' for name, count in spread)}"]


def _line_json(line: Line) -> dict[str, Any]:
    return {
        "figure": line.figure.name, "of": line.of, "teacher_and_humans": _estimate_json(line.together),
        "humans_alone": _estimate_json(line.humans), "teacher_alone": _estimate_json(line.teacher),
        "judged_teacher": plain(line.judged_teacher), "judged_humans": plain(line.judged_humans),
    }  # fmt: skip


def _estimate_json(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    value, lo, hi = found.interval
    return {
        "value": plain(value), "lo": plain(lo), "hi": plain(hi), "std_error": plain(found.std_error),
        "teacher_weight": plain(found.teacher_weight), "merged_strata": found.merged_strata,
    }  # fmt: skip


def _plan_json(plan: Plan) -> dict[str, Any]:
    def of(study: Study | None) -> dict[str, Any] | None:
        if study is None:
            return None
        by = dict(zip(plan.strata, study.by_stratum.tolist(), strict=True))
        return {"num_labelled": study.num_labelled, "detectable": plain(study.detectable), "by_stratum": by}

    return {
        "figure": plan.figure.name, "change": plan.change, "with_teacher": of(plan.with_teacher),
        "humans_alone": of(plan.humans_alone), "num_queries_needed": plan.num_queries_needed, "assumed": plan.assumed,
    }  # fmt: skip
