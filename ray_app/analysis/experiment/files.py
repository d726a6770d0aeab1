"""An experiment's table as files: CSV, Markdown, an image, JSON; and what an arm costs, in words."""

import io

from ray_app.analysis.experiment.ablation_table import ABSENT, ExperimentTable
from ray_app.analysis.metrics.formatting import csv_text, format_interval, markdown_table, short, with_bounds
from ray_app.base.config import PriceConfig
from ray_app.base.storage import Storage, StoredFile


def table_files(store: Storage, folder: str, table: ExperimentTable) -> list[StoredFile]:
    """Write `table.csv` (all digits), `table.md` (for people), `table.png` and `table.json` into a folder."""
    return [
        store.write_bytes(f"{folder}/table.csv", to_csv(table).encode()),
        store.write_bytes(f"{folder}/table.md", to_markdown(table).encode()),
        store.write_bytes(f"{folder}/table.png", to_png(table)),
        store.write_json(f"{folder}/table.json", table.to_json()),
    ]


def to_csv(table: ExperimentTable) -> str:
    """One line per row; each figure with its `lo` and `hi`, empty where undefined."""
    heads = [name for column in table.columns for name in (column, f"{column} lo", f"{column} hi")]
    lines = [["name", *heads, *table.cost_columns]]
    for row in table.rows:
        figures = ["" if value is None else f"{value:.6f}" for cell in row.cells for value in cell]
        lines.append([row.name, *figures, *row.costs])
    return csv_text(lines)


def to_markdown(table: ExperimentTable) -> str:
    """Title, table, verdict, how to read it."""
    lines = [["", *table.columns, *table.cost_columns]]
    for row in table.rows:
        name = f"{row.name} (labelled by humans)" if row.marked else row.name
        split = len(row.cells) - table.num_gains
        gains = ["" if cell.value is None else with_bounds(cell, "+.3f") for cell in row.cells[split:]]
        lines.append([name, *map(format_interval, row.cells[:split]), *gains, *row.costs])
    return "\n".join([f"## {table.title}", "", *markdown_table(lines), "", table.verdict, "", table.about, ""])


def to_png(table: ExperimentTable) -> bytes:
    """The first figure of each row with its interval."""
    from matplotlib.figure import Figure

    rows = [(row.name, *row.cells[0]) for row in table.rows]
    fig = Figure(figsize=(7.0, 0.9 + 0.36 * len(rows)), layout="constrained")
    ax = fig.subplots()
    for y, (_, value, lo, hi) in enumerate(rows):
        if lo is not None and hi is not None:
            ax.plot([lo, hi], [y, y], color="#1f5fa8", linewidth=2)
        if value is not None:
            ax.plot([value], [y], "o", color="#1f5fa8")
    ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
    ax.invert_yaxis()
    ax.set_xlabel(table.columns[0])
    ax.set_title(table.title, fontsize=10)
    ax.grid(axis="x", linewidth=0.5)
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def cost_columns(prices: PriceConfig) -> list[str]:
    """Names of what `costs_of` tells."""
    priced = ["per million pairs"] if prices.cpu_hour is not None else []
    return ["parameters", "training pairs", "pairs/s scored here", *priced]


def costs_of(num_parameters: int, num_pairs: int | None, pairs_per_sec: float, prices: PriceConfig) -> list[str]:
    """An arm's size, training pairs and speed; with a price of CPU hours, also money per million pairs."""
    texts = [
        f"{num_parameters:,}" if num_parameters else ABSENT,
        ABSENT if num_pairs is None else f"{num_pairs:,}",
        f"{pairs_per_sec:,.0f}" if pairs_per_sec else ABSENT,
    ]
    if prices.cpu_hour is not None:
        money = 1e6 / pairs_per_sec / 3600 * prices.cpu_hour if pairs_per_sec else None
        texts.append(ABSENT if money is None else f"{money:.2f} {prices.currency}")
    return texts


def shown(share: float | None) -> str:
    """Four digits of a share."""
    return ABSENT if share is None else short(share, 4)
