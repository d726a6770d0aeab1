"""What became of the cases: a line for each, a table by fault, figures."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from checks import Verdict

HARNESS_FAILED = "the harness failed"  # as an outcome


@dataclass
class Record:
    """One case."""

    number: int  # in the seed's order
    fault: str  # its name
    stage: str  # that was disturbed, or the app
    moment: str = ""  # when, in words
    target: str = ""  # what was hit; "": the stage had ended before, or there was nothing to hit
    outcome: str = ""  # how the disturbed run took it
    message: str = ""  # its last line, if it stopped
    verdict: Verdict = field(default_factory=Verdict)
    sec: float = 0.0

    @property
    def inside(self) -> bool:
        """Whether it struck while the stage ran."""
        return bool(self.target)

    @property
    def good(self) -> bool:
        """Whether it left no trace."""
        return self.verdict.good

    def line(self, seed: int) -> str:
        """For the log."""
        v = self.verdict
        harm = f"LOST {v.lost}, DUPLICATED {v.duplicated}, {'; '.join(v.wrong) or 'nothing else'}"
        after = "equal" if v.good else harm
        repeated = f", {v.repeated} rows repeated" if v.repeated else ""
        said = f" ({self.message[:140]})" if self.message else ""
        hit = self.target or "nothing to hit"
        return (
            f"seed {seed} case {self.number}: {self.stage} / {self.fault} {self.moment} [{hit}]: "
            f"{self.outcome}{said}; {after}{repeated}; {self.sec:.1f} s"
        )


def summarize(records: list[Record]) -> dict[str, Any]:
    """Figures of all cases; those that struck nothing are counted apart."""
    inside = [record for record in records if record.inside]
    return {
        "injected": len(inside),
        "struck_nothing": len(records) - len(inside),
        "survived": sum(record.good for record in inside),
        "lost_rows": sum(record.verdict.lost for record in records),
        "duplicated_rows": sum(record.verdict.duplicated for record in records),
        "other_differences": sum(len(record.verdict.wrong) for record in records),
        "rows_repeated": sum(record.verdict.repeated for record in records),
        "outcomes": dict(Counter(record.outcome for record in inside)),
        "by_fault": {
            fault: {"injected": sum(r.fault == fault for r in inside), "survived": sum(r.fault == fault and r.good for r in inside)}
            for fault in sorted({record.fault for record in records})
        },
        "by_stage": dict(sorted(Counter(record.stage for record in inside).items())),
    }  # fmt: skip


def table(records: list[Record]) -> str:
    """One row per fault."""
    head = f"{'fault':16} {'injected':>8} {'survived':>8} {'went on':>8} {'stopped':>8} {'killed':>8} {'other':>6} {'lost':>5} {'doubled':>7}"
    rows = [head]
    for fault in sorted({record.fault for record in records}):
        some = [record for record in records if record.fault == fault and record.inside]
        ends = Counter(record.outcome for record in some)
        known = [ends.pop(name, 0) for name in ("went on", "stopped", "killed")]
        lost, doubled = sum(r.verdict.lost for r in some), sum(r.verdict.duplicated for r in some)
        cells = " ".join(f"{cell:8}" for cell in (len(some), sum(r.good for r in some), *known))
        rows.append(f"{fault:16} {cells} {ends.total():6} {lost:5} {doubled:7}")
    return "\n".join(rows)
