"""Pictures of the search page and the report for README.md, from a finished demo run: docs/images/*.png.

python .ci/screenshots.py --config configs/demo.yaml        # after `make run`; needs chromium and the extra `serve`
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
QUERY = "red balloon"


def shoot(browser: str, url: str, name: str, size: tuple[int, int]) -> None:
    """Write a picture of a page, 256 colours, as a small file."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000",
             f"--user-data-dir={folder}/profile", f"--window-size={size[0]},{size[1]}", f"--screenshot={shot}", url],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        with Image.open(shot) as picture:
            picture.convert("RGB").quantize(128).save(IMAGES / name, optimize=True)
    print(f"docs/images/{name}: {(IMAGES / name).stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Serve the run, and take both pictures."""
    from ray_app.base.config import load_config
    from ray_app.base.storage import Storage
    from ray_app.cli import errors_in_one_line
    from ray_app.stages.order import load_stage
    from serve.local import free_port, serving

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    args = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("error: no chromium on PATH")
    cfg = load_config(args.config)
    store = Storage(cfg.output)
    with errors_in_one_line():
        made = load_stage("evaluate").run(cfg, store)  # up to date after `make run`
    IMAGES.mkdir(exist_ok=True)
    report = Path(store.full_path(made.info["report"])).absolute()
    shoot(browser, report.as_uri(), "report.png", (1200, 900))
    with serving(args.config, [], free_port()) as (url, _):
        query = urllib.parse.urlencode({"q": QUERY, "locale": "en-US"})
        shoot(browser, f"{url}/?{query}", "search_page.png", (1200, 900))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
