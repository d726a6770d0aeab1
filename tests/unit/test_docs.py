"""The documentation: every link, anchor and file that it names is there, and the page of pages names every page."""

import re
import runpy
from functools import cache
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from ray_app.base.config import load_config
from ray_app.base.storage import Storage
from ray_app.stages.ingest.stage import run as ingest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "deploy" / "README.md",
    ROOT / "CHANGELOG.md",
]
_CODE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


def prose(page: Path) -> str:
    """Text without code, in which a bracket is no link and a # no heading."""
    return re.sub(r"`[^`\n]*`", "", _CODE.sub("", page.read_text()))


@cache
def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them; a second one of a name gets -1."""
    found: dict[str, int] = {}
    for title in re.findall(r"^#+ +(.*)$", _CODE.sub("", page.read_text()), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {slug if i == 0 else f"{slug}-{i}" for slug, most in found.items() for i in range(most + 1)}


def problems(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    found = []
    for target in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        leads = (page.parent / path).resolve() if path else page
        if not leads.exists() or (path and not leads.is_relative_to(ROOT)):
            found.append(f"{target}: there is no such file")
        elif anchor and (leads.suffix != ".md" or anchor not in anchors(leads)):
            found.append(f"{target}: no heading of that name")
    return found


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_somewhere(page):
    assert not problems(page)


def test_the_check_finds_what_is_broken(tmp_path):
    links = "[a](b.md) [b](#nothing) `[c](d.md)`\n```\n[e](f.md)\n```\n[right](#a) [far](https://example.com)\n"
    (tmp_path / "page.md").write_text(f"# A\n{links}")
    assert len(problems(tmp_path / "page.md")) == 2
    assert anchors(ROOT / "docs" / "index.md")


def test_the_index_names_every_page():
    linked = {(ROOT / "docs" / target).resolve() for target in _LINK.findall((ROOT / "docs" / "index.md").read_text())}
    assert set(PAGES) - {ROOT / "docs" / "index.md"} <= linked


def test_the_config_reference_is_that_of_the_code():
    generated = runpy.run_path(str(ROOT / ".ci" / "config_reference.py"))["page"]()
    assert generated == (ROOT / "docs" / "config.md").read_text(), "run: python .ci/config_reference.py"


# Names that stand for a file of the reader's.
READERS_OWN = {"configs/X.yaml", "configs/mine.yaml", "pipelines/X.py"}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_programs_configs_and_make_targets_that_pages_name_are_there(page):
    folders = "pipelines|benchmarks|configs|deploy|serve|ray_app"
    files = set(re.findall(rf"\b(?:{folders})/[\w/]+\.(?:py|yaml|json)\b", page.read_text()))
    assert not [name for name in files - READERS_OWN if not (ROOT / name).exists()]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.M)) <= targets


def block(page: str, language: str) -> str:
    """The one code block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.M | re.S)
    return found


def test_the_worked_example_reads_its_files_as_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block("own_data.md", "python"), "shop.py", "exec"), {})
    config = block("own_data.md", "yaml").replace("extends: base.yaml", f"extends: {ROOT}/configs/base.yaml")
    Path("mine.yaml").write_text(config)
    cfg = load_config("mine.yaml")
    counts = ingest(cfg, Storage(cfg.output)).counts
    shown = (ROOT / "docs" / "own_data.md").read_text()
    assert (counts["pins_out"], counts["search_log_out"]) == (240, 4_800) and counts["boards_in"] == 0
    refused = ds.dataset("runs/mine/tables/quarantine").to_table(columns=["table", "row", "reason"])
    assert refused.num_rows == counts["rows_quarantined"] == 5
    for row in refused.to_pylist():
        assert re.search(rf"{row['table']} +{row['row']} +{re.escape(row['reason'])}\n", shown)


def test_commands_of_the_worked_example_name_its_files():
    text = (ROOT / "docs" / "own_data.md").read_text()
    for ids in re.findall(r'"pin_ids": \[([^\]]*)\]', text):
        assert {int(number) < 240 for number in re.findall(r"S(\d+)", ids)} == {True}
