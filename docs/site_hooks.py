"""For mkdocs: pages in the order of index.md, and links that leave docs/ lead to copies beside the pages."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "deploy/README.md": "cluster.md",
}  # outside docs/, but documentation
_LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """The navigation: a menu for each table of index.md, with the pages that it links."""
    menus: dict[str, list[dict[str, str]]] = {}
    for line in (ROOT / "docs" / "index.md").read_text(encoding="utf-8").splitlines():
        if head := re.fullmatch(r"\| ([^|]+) \| \|", line):
            menus[head[1].capitalize()] = []
        elif link := re.match(r"\| \[([^\]]+)\]\(([^)#\s]+\.md)\)", line):
            menus[list(menus)[-1]].append({link[1]: _page(ROOT / "docs", link[2])})
    config.nav = [{"Home": "index.md"}, *({name: pages} for name, pages in menus.items())]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and files outside docs/ that some page links."""
    for source, page in PAGES.items():
        text = _moved((ROOT / source).read_text(encoding="utf-8"), (ROOT / source).parent)
        files.append(File.generated(config, page, content=text))
    linked = set()
    for path in [*(ROOT / "docs").glob("*.md"), *(ROOT / source for source in PAGES)]:
        for _, target, _ in _LINK.findall(path.read_text(encoding="utf-8")):
            outside = (path.parent / target).resolve()
            if outside.is_file() and outside.suffix != ".md":
                linked.add(outside)
    for outside in sorted(linked):
        name = _copy(outside)
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(outside)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave docs/ to the copies."""
    return markdown if page.file.src_uri in PAGES.values() else _moved(markdown, ROOT / "docs")


def _moved(text: str, folder: Path) -> str:
    return _LINK.sub(lambda found: f"{found[1]}{_page(folder, found[2])}{found[3] or ''})", text)


def _page(folder: Path, target: str) -> str:
    """Where a link of a file in `folder` leads on the site."""
    path = (folder / target).resolve()
    if "://" in target or not path.exists():
        return target
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES:
        return PAGES[name]
    return name.removeprefix("docs/") if name.startswith("docs/") else _copy(path)


def _copy(path: Path) -> str:
    # Browsers show .txt and offer to save .yaml; all that is linked is text.
    return f"files/{path.relative_to(ROOT).as_posix()}.txt" if path.suffix != ".json" else f"files/{path.name}"
