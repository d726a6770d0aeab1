"""Layers of the repository: an import that points up, or from one stage to another, would tie parts that change apart."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From top to bottom. A module imports modules of its own package and of lower lines, and nothing else of the repository.
# `name.*` makes each package below `name` one of its own; the longest name that fits decides.
LAYERS = """
ray_app.api
pipelines serve
ray_app.cli ray_app.client
ray_app.console
ray_app.analysis.evaluate
ray_app.analysis.experiment
ray_app.analysis.*
ray_app.analysis.metrics
ray_app.stages.* ray_app.online
ray_app.cluster
ray_app.training
ray_app.sources
ray_app.models ray_app.features
ray_app.tables ray_app.demo
ray_app.base
"""
LEVEL = {name: level for level, line in enumerate(LAYERS.strip().splitlines()) for name in line.split()}

# Where Ray may be imported: Python files by the folder or the name.
RAY = ("pipelines/", "serve/", "ray_app/cluster/", "ray_app/cli.py")


def package_of(module):
    """The package of a module, and its line in LAYERS."""
    fits = [name for name in LEVEL if f"{module}.".startswith(name.removesuffix(".*") + ".")]
    best = max(fits, key=len)
    return ".".join(module.split(".")[: best.count(".") + 1]), LEVEL[best]


def is_forbidden(importer, imported):
    (one, above), (other, below) = package_of(importer), package_of(imported)
    return one != other and below <= above


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imports_of(tree, modules):
    """(line, module) of every import of the repository's own modules, lazy ones and those for type checking included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in modules)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found = inner if inner in modules else node.module
                if found in modules:
                    yield node.lineno, found


@pytest.fixture(scope="module")
def trees():
    paths = [path for top in ("pipelines", "serve", "ray_app") for path in (ROOT / top).rglob("*.py")]
    found = {module_of(path): (path, ast.parse(path.read_text())) for path in sorted(paths)}
    del found["ray_app"]  # names the API for type checkers, and imports it when asked
    return found


@pytest.mark.parametrize(
    ("importer", "imported", "forbidden"),
    [
        ("ray_app.base.text", "ray_app.tables.ledger", True),
        ("ray_app.tables.ledger", "ray_app.base.text", False),
        ("ray_app.stages.label.stage", "ray_app.stages.label.batch", False),
        ("ray_app.stages.label.stage", "ray_app.stages.sample.stage", True),
        ("ray_app.models.student", "ray_app.features.student", True),
        ("ray_app.analysis.transfer.stage", "ray_app.analysis.metrics.dcg", False),
        ("ray_app.analysis.transfer.stage", "ray_app.analysis.simulate.users", True),
        ("ray_app.online.service", "ray_app.stages.embed.stage", True),
        ("ray_app.cluster.executor", "pipelines.label", True),
    ],
)
def test_which_imports_are_forbidden(importer, imported, forbidden):
    assert is_forbidden(importer, imported) is forbidden


def test_imports_point_downward_and_no_stage_imports_another(trees):
    forbidden = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for module, (path, tree) in trees.items()
        for line, imported in imports_of(tree, trees)
        if is_forbidden(module, imported)
    ]
    assert forbidden == []


def test_no_cycle_of_imports(trees):
    graph = {
        module: {imported for _, imported in imports_of(tree, trees)} - {module} for module, (_, tree) in trees.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_a_serving_replica_needs_no_cluster(trees):
    forbidden = [
        f"{path.relative_to(ROOT)}:{line}"
        for module, (path, tree) in trees.items()
        for line, imported in imports_of(tree, trees)
        if module.startswith("ray_app.online") and imported.startswith("ray_app.cluster")
    ]
    assert forbidden == []


def test_ray_is_imported_at_the_edges_only(trees):
    found = [
        f"{name}:{node.lineno}"
        for path, tree in trees.values()
        if not (name := path.relative_to(ROOT).as_posix()).startswith(RAY) and not name.endswith(RAY)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "ray" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray")
    ]
    assert found == []
