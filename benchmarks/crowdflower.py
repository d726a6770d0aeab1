"""Make tables of the crowdflower data set that `benchmarks/crowdflower.yaml` reads: a shop of 7,222 judged pairs, no log.

    python benchmarks/crowdflower.py          # writes runs/crowdflower_data/{products,grades}.csv
    make run CONFIG=benchmarks/crowdflower.yaml

The file holds 2/3 of the queries of the competition "Crowdflower Search Results Relevance" (2015); it is not ours to
distribute. A product is a distinct (title, description); the grade is the median of the raters.
"""

import csv
import gzip
import hashlib
import json
import sys
from pathlib import Path

SOURCE = Path("../shared/data/crowdflower/train.csv.gz")
TARGET = Path("runs/crowdflower_data")


def main() -> None:
    if not SOURCE.exists():
        sys.exit(f"{SOURCE} is missing: this benchmark needs the data set")
    TARGET.mkdir(parents=True, exist_ok=True)
    products: dict[str, tuple[str, str]] = {}
    grades = []
    with gzip.open(SOURCE, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = row["product_title"], row["product_description"]
            sku = hashlib.sha256("\0".join(text).encode()).hexdigest()[:12]
            products[sku] = text
            grades.append((row["query"], sku, row["median_relevance"]))
    # The set judges a few products twice for a query (other listings with the same text); the first one counts.
    first = {(query, sku): (query, sku, "median", grade) for query, sku, grade in reversed(grades)}
    _write(TARGET / "products.csv", ("sku", "name", "text"), [(sku, *text) for sku, text in sorted(products.items())])
    _write(TARGET / "grades.csv", ("query", "sku", "rater", "rating"), sorted(first.values()))
    print(json.dumps({"products": len(products), "grades": len(first), "folder": str(TARGET)}))


def _write(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
