"""The Chorus e-commerce set as published: products, human grades, and a UBI log.

Files are found by name anywhere below the folder, so a clone of the project (`data-encoder/ecommerce/vectors/data/`,
`katas/`) reads like a flat folder with the same files.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ray_app.base.errors import UserError
from ray_app.sources import rows
from ray_app.sources.files import SourceFile, find_files
from ray_app.sources.rows import RawBatch, ReadRows

FINAL_RATER = "final"  # rater_id of the adjudicated grade, where a data set has one

_PRODUCTS = re.compile(r"\d+\.json\.zip")
_RATED = "Broad_Query_Set_rated.csv"
_INDIVIDUAL = "Broad_Query_Set_individual_ratings.csv"
_LOG = "log_events.zip"
_AGENT = re.compile(r"(agent_\d+)_rating")

# What says what kind of thing a product is or what it is for, best first. Chosen by looking at how often each of the
# 1,834 text attributes occurs (each of these: 60 to 4,500 of 19,406 products) and leaving out measures, codes, plugs
# and colours; at least one of them is there for about half of the products.
KIND_ATTRIBUTES = (
    "product_type", "device_type", "type", "case_type", "scanner_type", "keyboard_form_factor", "wearing_style",
    "form_factor", "chassis_type", "purpose", "recommended_usage", "suitable_for", "component_for", "platform",
    "battery_type", "cable_type", "label_type", "print_technology", "connectivity_technology", "device_interface",
    "processor_family", "brand_compatibility", "compatibility",
)  # fmt: skip
_MAX_VALUE_CHARS = 60  # a compatibility list can name a hundred printers
_MAX_KIND_CHARS = 200
_NOISE = {"y", "n", "yes", "no", "none", "not supported", "not available", "not applicable", "unspecified", "other"}

_PIN_COLUMNS = ("pin_id", "image", "title", "description", "link_title", "link_description", "created_at")
_LABEL_COLUMNS = ("query", "pin_id", "rater_id", "grade")


# --- files ---


def product_files(uri: str, key: str) -> list[SourceFile]:
    """`1.json.zip`, `2.json.zip`, ...

    Raises:
        UserError: there are none.
    """
    return _named(find_files(uri, key), _PRODUCTS, uri, key, "N.json.zip")


def label_files(uri: str, key: str) -> list[SourceFile]:
    """The final ratings, then the individual ones if they are there.

    Raises:
        UserError: there are no final ratings.
    """
    files = find_files(uri, key)
    individual = [f for f in files if f.basename == _INDIVIDUAL]
    return _named(files, re.compile(re.escape(_RATED)), uri, key, _RATED) + individual[:1]


def log_files(uri: str, key: str) -> list[SourceFile]:
    """The UBI log: one file.

    Raises:
        UserError: there is none (Chorus keeps it with its OpenSearch edition).
    """
    return _named(find_files(uri, key), re.compile(re.escape(_LOG)), uri, key, _LOG)[:1]


def _named(files: list[SourceFile], pattern: re.Pattern[str], uri: str, key: str, what: str) -> list[SourceFile]:
    """Files of that name; of several with one name the one nearest to the top."""
    found: dict[str, SourceFile] = {}
    for file in sorted(files, key=lambda f: (f.name.count("/"), f.name)):
        if pattern.fullmatch(file.basename):
            found.setdefault(file.basename, file)
    if not found:
        raise UserError(f"{key}: there is no {what} below {uri}; put it there, or leave {key.rsplit('.', 1)[0]} out")
    return [found[name] for name in sorted(found)]


# --- products ---


def read_products_file(file: SourceFile, locale: str) -> Iterator[RawBatch]:
    """The products of one file as raw pins.

    Raises:
        UserError: the file is corrupt.
    """
    read = ReadRows(file.name)
    for number, product in enumerate(_products(file)):
        if isinstance(product, dict):
            read.add(number, _pin(product))
        else:
            read.refuse(number, f"{rows.CORRUPT_ROW}: not a JSON object", json.dumps(product))
    yield read.batch(_PIN_COLUMNS, locale=locale)


def read_ean_map(files: Sequence[SourceFile]) -> dict[str, str]:
    """EAN -> pin id of all products; of two products with one EAN the first has it."""
    pin_id_of: dict[str, str] = {}
    for file in files:
        for product in _products(file):
            eans = product.get("ean") if isinstance(product, dict) else None
            for ean in eans if isinstance(eans, list) else [eans]:
                if ean is not None and product.get("id") is not None:
                    pin_id_of.setdefault(str(ean), str(product["id"]))
    return pin_id_of


def _products(file: SourceFile) -> list[Any]:
    try:
        products = json.loads(file.read_document())
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file.key}: {file.path} is corrupt (not JSON: {error}); fetch it again") from None
    if not isinstance(products, list):
        raise UserError(f"{file.key}: {file.path} must hold a JSON list of products, not {type(products).__name__}")
    return products


def _pin(product: dict[str, Any]) -> dict[str, Any]:
    """A product as a raw pin. The link texts add only what the title does not say already."""
    title = product.get("title")
    known = str(title or "").casefold()
    maker = [str(product.get(name) or "") for name in ("supplier", "name")]
    return {
        "pin_id": product.get("id"), "image": product.get("img_500x500") or product.get("img_high"), "title": title,
        "description": product.get("short_description"),
        "link_title": " ".join(part for part in maker if part and part.casefold() not in known),
        "link_description": _kind(product, known), "created_at": product.get("date_released"),
    }  # fmt: skip


def _kind(product: dict[str, Any], known: str) -> str:
    """Short values of the attributes that say what it is, each once, without those that the title has."""
    values: list[str] = []
    for name in KIND_ATTRIBUTES:
        raw = product.get(f"attr_t_{name}")
        # The export writes line breaks as the two characters \n.
        value = " ".join(str(raw or "").replace("\\n", " ").split())
        if len(value) < 2 or value.isdigit() or value.casefold() in _NOISE or value.casefold() in known:
            continue
        if value.casefold() not in {v.casefold() for v in values}:
            values.append(value[:_MAX_VALUE_CHARS].rsplit(" ", 1)[0] if len(value) > _MAX_VALUE_CHARS else value)
    return ", ".join(values)[:_MAX_KIND_CHARS].rstrip(" ,")


# --- grades ---


def read_rated_csv(file: SourceFile, locale: str, skip: set[tuple[str, str]] | None = None) -> RawBatch:
    """Raw human labels of a file with the columns query, docid, rating; their rater is `final`.

    Grades are left on the file's own scale: validation maps them.

    Raises:
        UserError: a column is missing.
    """
    return _read_ratings(file, locale, {"rating": FINAL_RATER}, skip or set())


def read_labels(files: Sequence[SourceFile], locale: str) -> Iterator[RawBatch]:
    """Raw human labels of the final ratings and, if given, the individual ones.

    Each rater's grade is a row of its own (`agent_1` ..), and so is the final rating of each pair (`final`): `final`
    is the truth for evaluation, the raters' distribution the soft target for training. Where the two files disagree
    on a final rating (15 of 2,226 pairs), the published final file wins.

    Raises:
        UserError: a column is missing.
    """
    final = read_rated_csv(files[0], locale)
    yield final
    for file in files[1:]:
        done = set(zip(final.columns["query"], final.columns["pin_id"], strict=True))
        header = _header(file)
        raters = {name: found[1] for name in header if (found := _AGENT.fullmatch(name))}
        yield _read_ratings(file, locale, raters, set())
        if "final_rating" in header:
            yield _read_ratings(file, locale, {"final_rating": FINAL_RATER}, done)


def _header(file: SourceFile) -> list[str]:
    with file.open_plain() as raw:
        return next(csv.reader(file.text_lines(raw)), [])


def _read_ratings(file: SourceFile, locale: str, raters: dict[str, str], skip: set[tuple[str, str]]) -> RawBatch:
    """One raw row per (line, column of `raters`), but for pairs to skip."""
    read = ReadRows(file.name)
    with file.open_plain() as raw:
        reader = csv.DictReader(file.text_lines(raw))
        names = reader.fieldnames or []
        for name in ("query", "docid", *raters):
            if name not in names:
                raise UserError(f"{file.key}: {file.path} has no column {name!r}; it has {', '.join(names)[:200]}")
        for number, line in enumerate(reader):
            if None in line or None in line.values():  # more or fewer fields than the header
                content = rows.content_of({str(k): v for k, v in line.items()})
                read.refuse(number, f"{rows.CORRUPT_ROW}: not {len(names)} fields", content)
            elif (line["query"], line["docid"]) not in skip:
                for column, rater in raters.items():
                    values = (line["query"], line["docid"], rater, line[column])
                    read.add(number, dict(zip(_LABEL_COLUMNS, values, strict=True)))
    return read.batch(_LABEL_COLUMNS, locale=locale)
