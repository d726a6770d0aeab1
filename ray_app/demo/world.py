"""The demo world (docs/demo_world.md): pins with texts and images, and the rows of one partition.

Every row is a function of the settings and its number. So parts can be made anywhere, in any order and of any size, and
memory does not grow with the world.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.base.config import DemoConfig
from ray_app.base.schemas import PINS
from ray_app.demo import render_images as pictures
from ray_app.demo import texts
from ray_app.demo.boards import board_rows, num_boards
from ray_app.demo.concepts import ATTRIBUTES, Concept
from ray_app.demo.facts import LANGUAGE_OF, LOCALE_NAMES, Codes, Draw, generator, pin_facts, pin_id
from ray_app.demo.labels import concept_rows, ground_truth_tables, human_labels, request_rows
from ray_app.demo.log import LOG_START, num_searches, search_log
from ray_app.demo.queries import num_pool_queries

# Shares of pins. Guessed, after what catalogues of saved web pages look like: owners write little, and some of it to sell.
NO_TITLE_SHARE = 0.20
SPAM_TITLE_SHARE = 0.08
NO_DESCRIPTION_SHARE = 0.50
NO_LINK_SHARE = 0.36  # uploads; they have neither link text
NO_LINK_DESCRIPTION_SHARE = 0.06  # of pins with a link
ENGLISH_TEXT_SHARE = 0.10  # of pins from elsewhere
TOLD_SHARES = {
    "title": 0.4,
    "description": 0.5,
    "link_title": 0.4,
    "link_description": 0.4,
}  # of each attribute, by field
NO_IMAGE_SHARE = 0.03
BROKEN_IMAGE_SHARE = 0.002  # truncated uploads
MAX_AGE_DAYS = 700  # of a pin when the log starts

MIN_PARTS = 8  # so that small worlds are made on several cores too, but
MIN_PART_PINS = 500  # a part costs more than the start of a worker


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """An image file: its path below the image folder, and its content."""

    path: str
    data: bytes
    is_broken: bool


def num_parts(cfg: DemoConfig) -> int:
    """Files per table."""
    per_file = min(cfg.pins_per_file, max(MIN_PART_PINS, -(-cfg.num_pins // MIN_PARTS)))
    return -(-cfg.num_pins // per_file)


def part_bounds(total: int, part: int, parts: int) -> tuple[int, int]:
    """First row of one of `parts` nearly equal parts, and the one after its last."""
    return total * part // parts, total * (part + 1) // parts


def part_tables(cfg: DemoConfig, part: int, parts: int, image_root: str) -> dict[str, pa.Table]:
    """The rows of every table that one part of the world holds. Laid end to end, parts give the same rows however many.

    Args:
        image_root: Folder of the image files, for `PINS.image`.
    """
    pins = part_bounds(cfg.num_pins, part, parts)
    return {
        "pins": pin_rows(cfg, *pins, image_root),
        "boards": board_rows(cfg, *part_bounds(num_boards(cfg), part, parts)),
        "search_log": search_log(cfg, *part_bounds(num_searches(cfg), part, parts)),
        "ground_truth/concepts": concept_rows(cfg, *pins),
        "ground_truth/requests": request_rows(cfg, *part_bounds(num_pool_queries(cfg), part, parts)),
    }


def whole_tables(cfg: DemoConfig) -> dict[str, pa.Table]:
    """The small tables that are not partitioned."""
    judgments, requests = ground_truth_tables(cfg)
    return {"human_labels": human_labels(cfg), "ground_truth/judgments": judgments, "ground_truth/requests": requests}


def pin_rows(cfg: DemoConfig, start: int, stop: int, image_root: str) -> pa.Table:
    """PINS rows of pins start..stop-1."""
    facts = pin_facts(cfg.seed, np.arange(start, stop))
    rows: list[dict[str, Any]] = []
    first_saved = LOG_START - timedelta(days=MAX_AGE_DAYS)
    for i, number in enumerate(range(start, stop)):
        concept, root = facts.concept(i), int(facts.root[i])
        rng = generator(cfg.seed, Draw.CREATED, number)
        row: dict[str, Any] = {
            "pin_id": pin_id(number),
            **_texts(concept, LANGUAGE_OF[facts.locale[i]], generator(cfg.seed, Draw.TEXT, number)),
            "locale": LOCALE_NAMES[facts.locale[i]],
            "created_at": first_saved + timedelta(seconds=int(rng.integers(MAX_AGE_DAYS * 86_400))),
        }
        if _has_image(cfg, root):
            if cfg.pictures == "files":
                row["image"] = join_location(image_root, image_path(root))
            else:
                row["image_bytes"] = _image(cfg, root, concept).data
        rows.append(row)
    return pa.Table.from_pylist(rows, PINS)


def image_files(cfg: DemoConfig, start: int, stop: int) -> Iterator[ImageFile]:
    """The image files of pins start..stop-1; a repin shows another pin's."""
    facts = pin_facts(cfg.seed, np.arange(start, stop))
    for i in np.flatnonzero(facts.root == facts.number):
        number = int(facts.number[i])
        if _has_image(cfg, number):
            yield _image(cfg, number, facts.concept(i))


def image_path(number: int) -> str:
    """Path of a pin's image below the image folder: 256 folders, so that none grows too large to list."""
    return f"{number % 256:02x}/{pin_id(number)}.png"


def join_location(root: str, path: str) -> str:
    """A path below a folder or URI, before the URI's options."""
    if "://" not in root:
        return f"{root}/{path}"
    place, question, options = root.partition("?")
    return f"{place.rstrip('/')}/{path}{question}{options}"


def num_repins(cfg: DemoConfig, numbers: Codes) -> int:
    """Number of these pins that show another pin's image."""
    facts = pin_facts(cfg.seed, numbers)
    return int((facts.root != facts.number).sum())


def _texts(concept: Concept, spoken: str, rng: np.random.Generator) -> dict[str, str | None]:
    """Text fields of the owner and of the linked page: each mentions the object and some attributes, or nothing."""
    language = "en" if rng.random() < ENGLISH_TEXT_SHARE else spoken
    told = {field: [a for a in ATTRIBUTES if rng.random() < share] for field, share in TOLD_SHARES.items()}
    kind, has_description = rng.random(), rng.random() >= NO_DESCRIPTION_SHARE
    title: str | None
    if kind < NO_TITLE_SHARE:
        title = None
    elif kind < NO_TITLE_SHARE + SPAM_TITLE_SHARE:
        title = texts.spam_text(language, rng)
    else:
        title = texts.title(concept, language, rng, told["title"])
    row = {"title": title, "description": None, "link_title": None, "link_description": None}
    if has_description:
        row["description"] = texts.description(concept, language, rng, told["description"])
    if rng.random() >= NO_LINK_SHARE:
        row["link_title"] = texts.link_title(concept, language, rng, told["link_title"])
        if rng.random() >= NO_LINK_DESCRIPTION_SHARE:
            row["link_description"] = texts.link_description(concept, language, rng, told["link_description"])
    return row


def _has_image(cfg: DemoConfig, root: int) -> bool:
    return bool(generator(cfg.seed, Draw.PICTURE, 0, root).random() >= NO_IMAGE_SHARE)


def _image(cfg: DemoConfig, root: int, concept: Concept) -> ImageFile:
    rng = generator(cfg.seed, Draw.PICTURE, 1, root)
    is_broken = bool(rng.random() < BROKEN_IMAGE_SHARE)
    data = pictures.image_bytes_of(concept, rng, cfg.image_size)
    return ImageFile(path=image_path(root), data=data[: len(data) // 3] if is_broken else data, is_broken=is_broken)
