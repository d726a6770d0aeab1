"""Nothing in the code runs what it reads: no pickles of strangers, no remote code, no shell, no unsafe YAML.

Whatever transformers loads says `trust_remote_code=False` itself: without it transformers asks on the terminal.

A scan of the syntax trees. What is allowed although it looks the same is listed here, with the reason.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def sources():
    """Path of each module -> its text."""
    folders = ("ray_app", "serve", "pipelines", "benchmarks")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


# (file, what): why it is no danger.
ALLOWED = {
    ("ray_app/cluster/streaming.py", "pickle.loads"): "of steps that this very job has put into Ray's object store",
    (
        "ray_app/cluster/buckets.py",
        "pickle.loads",
    ): "of items and results that this very job has put into Ray's object store",
    ("ray_app/base/config/loading.py", "yaml.load"): "with a subclass of SafeLoader",
    ("ray_app/models/model_sources.py", "AutoModel.from_pretrained"): "of a GGUF file, which holds no code",
    ("ray_app/models/model_sources.py", "AutoTokenizer"): "`open_tokenizer`: texts do not become control tokens",
    ("ray_app/models/exports.py", "AutoTokenizer"): "reads an export back as its users will, to compare it",
}
_FORBIDDEN_MODULES = {"joblib", "dill", "shelve", "marshal", "cloudpickle"}
_FORBIDDEN_CALLS = {
    "eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.full_load", "yaml.unsafe_load",
    "os.system", "os.popen", "tempfile.mktemp", "ssl._create_unverified_context", "pd.read_pickle", "pandas.read_pickle",
}  # fmt: skip


def dangers(source: str) -> list[str]:
    """What in a module can run code from outside, or turn a check off."""
    found = []
    tree = ast.parse(source)
    loaders = _of_transformers(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"import {name}" for name in names if name.split(".")[0] in _FORBIDDEN_MODULES]
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            found += _of_call(name, given)
            if _loads(name, loaders):
                found += [] if _is(given.get("trust_remote_code"), False) else [f"{name}: trust_remote_code"]
                found += ["AutoTokenizer"] if "AutoTokenizer" in name else []
        elif isinstance(node, ast.Dict):
            named = zip(node.keys, node.values, strict=True)
            found += ["trust_remote_code" for k, v in named if _is(k, "trust_remote_code") and not _is(v, False)]
    return found


def _of_transformers(tree: ast.AST) -> set[str]:
    """Names under which a module has classes and functions of transformers, by whatever import."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    names = {a.asname or a.name for node in nodes if node.module.split(".")[0] == "transformers" for a in node.names}
    return names | {"transformers"}


def _loads(name: str, loaders: set[str]) -> bool:
    """Whether a call by that name makes transformers read a model's files, or its classes by the config's name."""
    first, _, rest = name.partition(".")
    method = rest.rpartition(".")[2] or first
    return (first in loaders or first.startswith("Auto")) and method in ("from_pretrained", "from_config", "pipeline")


def _of_call(name: str, given: dict) -> list[str]:
    found = [name] if name in _FORBIDDEN_CALLS else []
    if name == "torch.load" and not _is(given.get("weights_only"), True):
        found.append("torch.load")
    if name in ("np.load", "numpy.load") and "allow_pickle" in given:
        found.append("np.load")
    loads_weights = name.startswith("AutoModel") and name.endswith(".from_pretrained")
    if loads_weights and not _is(given.get("use_safetensors"), True):
        found.append("AutoModel.from_pretrained")
    for keyword, safe in (("trust_remote_code", False), ("shell", False), ("verify", True)):
        if keyword in given and not _is(given[keyword], safe) and not (keyword == "verify" and name.endswith("open")):
            found.append(keyword)
    return found


def _is(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "import joblib",
        "from dill import loads", "pickle.loads(data)", "yaml.load(text)", "eval(text)", "os.system(text)",
        "subprocess.run(text, shell=True)", "AutoModel.from_pretrained(p)", "f(trust_remote_code=True)",
        "a = {'trust_remote_code': wanted}", "httpx.Client(verify=False)", "f(trust_remote_code=wanted)",
        "AutoTokenizer.from_pretrained(p)", "AutoConfig.from_pretrained(p, **where)", "AutoModel.from_config(c)",
        "transformers.AutoProcessor.from_pretrained(p)", "transformers.pipeline('fill-mask', model=p)",
        "from transformers import BertTokenizer as B\nB.from_pretrained(p)",
        "from transformers.models.auto import AutoConfig as C\nC.from_pretrained(p, trust_remote_code=None)",
        "from transformers import pipeline\npipeline(model=p)",
        "AutoTokenizer.from_pretrained(p, trust_remote_code=False)",  # texts would become control tokens
    ],
)  # fmt: skip
def test_the_scan_sees(source):
    """Else the test below would pass whatever is in the code."""
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(p, weights_only=True)", "np.load(p)", "model.eval()", "CrossEncoder.from_pretrained(folder)",  # ours
        "AutoModel.from_pretrained(p, use_safetensors=True, trust_remote_code=False)",
        "from transformers import AutoConfig\nAutoConfig.from_pretrained(p, trust_remote_code=False, **where)",
    ],
)  # fmt: skip
def test_the_scan_lets_pass(source):
    assert not dangers(source)


def test_no_code_from_outside_is_run():
    texts = sources()
    assert len(texts) > 100
    found = {(path, what) for path, text in texts.items() for what in dangers(text)}
    # Benchmarks read texts of their own, and compare with others that read control tokens.
    found = {(path, what) for path, what in found if not (path.startswith("benchmarks/") and what == "AutoTokenizer")}
    assert found == set(ALLOWED)


# Who writes CSV: a cell that begins with `=` runs in a spreadsheet, so text of strangers must not get there unseen.
CSV_WRITERS = {
    "benchmarks/crowdflower.py": "a copy of a CSV file, for ingest to read",
    "ray_app/sources/sheets.py": "texts for people with spreadsheets: `defuse`",
    "ray_app/analysis/metrics/formatting.py": "figures under our own names",
}


def test_whoever_writes_csv_is_known():
    words = ("csv.writer", "DictWriter", ".to_csv", "write_csv(")
    found = {path for path, text in sources().items() if any(word in text for word in words)}
    assert found <= set(CSV_WRITERS)
