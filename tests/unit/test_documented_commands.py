"""The commands of the README and the docs are accepted by the programs: each argument, config file and `--set` key."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import ray_app.cli
from ray_app.base.config import load_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "deploy" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_COMMAND = re.compile(r"(?:^|[\s`(])(?:\.venv/bin/)?python (pipelines/\w+\.py(?:[^\n`]*\\\n)*[^\n`]*)")
READERS_OWN = re.compile(r"configs/(?:X|mine|my)\.yaml|my\.yaml")
OUTPUT = "output=runs/mine"
PINS = {"adapter": "table", "path": "pins.parquet"}


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of each command that runs a program, without shell redirections."""
    found = []
    for page in PAGES:
        for command in _COMMAND.findall(page.read_text()):
            command = command.partition(">>")[0].replace("\\\n", " ")
            words = shlex.split(command, comments=True)
            if "--config" in words:  # a sentence may name a program alone
                found.append((page.name, words))
    return found


def accepted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a program up to the point at which it would begin its work."""
    given = []
    monkeypatch.setattr(ray_app.cli, "run_parsed", lambda args, _: given.append(args))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [READERS_OWN.sub("configs/chorus.yaml", word) for word in words])
    runpy.run_path(words[0], run_name="__main__")
    (args,) = given
    load_config(args.config, [OUTPUT, *(re.sub(r"\$\(.*\)", "2026-01-31", one) for one in args.set)])


def test_pages_have_commands():
    assert len({words[0] for _, words in commands()}) >= 15 and len(commands()) >= 35


@pytest.mark.parametrize(("page", "words"), commands(), ids=[f"{page} {' '.join(words)}" for page, words in commands()])
def test_command_is_accepted(page, words, monkeypatch):
    accepted(words, monkeypatch)


@pytest.mark.parametrize("wrong", ["--estimate-price", "--set=label.bakend=vllm", "--config=configs/none.yaml"])
def test_a_wrong_command_would_be_noticed(wrong, monkeypatch):
    with pytest.raises((SystemExit, ray_app.base.errors.UserError)):
        accepted(["pipelines/label.py", "--config", "configs/X.yaml", wrong], monkeypatch)


def test_commented_keys_of_the_base_config_are_keys_with_their_defaults(tmp_path):
    text = (ROOT / "configs" / "base.yaml").read_text()
    shown = re.sub(r"^( *)# (?=\w+: )", r"\1", text, flags=re.M)
    assert shown != text
    (tmp_path / "shown.yaml").write_text(shown)
    (tmp_path / "base.yaml").write_text(text)
    as_shown = load_config(tmp_path / "shown.yaml").model_dump()
    as_is = load_config({"extends": str(tmp_path / "base.yaml"), "output": "o", "ingest": {"pins": PINS}}).model_dump()
    examples = {"output", "ingest", "caption", "engagement", "graph"}  # off, or the user's own
    different = {name for name, value in as_shown.items() if value != as_is[name]}
    assert different <= examples, different
