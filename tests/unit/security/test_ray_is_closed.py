"""Ray runs whatever it is sent: who starts a cluster closes it. tests/ray/test_local_cluster.py looks at the ports."""

import ast
import re
from pathlib import Path

from ray_app.cluster.resources import local_environment

ROOT = Path(__file__).parents[3]
FOLDERS = ("ray_app", "serve", "pipelines", "benchmarks", "tests", "configs", "deploy", "docs", ".ci")
TEXTS = [
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".md", ".yaml", ".sh"}
]
TEXTS += [ROOT / "README.md", ROOT / "Makefile", ROOT / "serve/config.yaml", ROOT / "deploy/Dockerfile"]
# `ray.init` with an address, of a cluster whose token is known.
JOINING = {"ray_app/cluster/resources.py", "benchmarks/node_failure.py", "tests/ray/stages_on_nodes.py"}


def starts_ray(path: Path) -> bool:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return any(isinstance(f, ast.Attribute) and f.attr == "init" and ast.unparse(f.value) == "ray" for f in calls)


def test_nothing_switches_authentication_off() -> None:
    assert len(TEXTS) > 300
    off = re.compile(r"RAY_AUTH_MODE\W{1,12}disabled")
    found = {path.relative_to(ROOT).as_posix() for path in TEXTS if off.search(path.read_text())}
    # The attacker there tries it.
    assert found == {"tests/ray/test_local_cluster.py"}


def test_one_function_starts_clusters() -> None:
    programs = [path for path in TEXTS if path.suffix == ".py"]
    assert {path.relative_to(ROOT).as_posix() for path in programs if starts_ray(path)} == JOINING


def test_each_cluster_has_a_token_of_its_own() -> None:
    first, second = local_environment({}), local_environment({})
    assert first["RAY_AUTH_MODE"] == "token" and re.fullmatch("[0-9a-f]{64}", first["RAY_AUTH_TOKEN"])
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_what_the_user_has_set_of_the_token_stays() -> None:
    for given in ({"RAY_AUTH_TOKEN": "mine"}, {"RAY_AUTH_TOKEN_PATH": "/there"}, {"RAY_AUTH_MODE": "k8s"}):
        found = local_environment(given)
        assert "RAY_AUTH_TOKEN" not in found and found["RAY_AUTH_MODE"] == given.get("RAY_AUTH_MODE", "token")
