"""Loading of the config from YAML files and overrides, with errors that name the key."""

import difflib
import hashlib
import json
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ray_app.base.config.inputs import Source
from ray_app.base.config.tree import Config
from ray_app.base.errors import UserError

# A checkout has them beside the package, a wheel brings them as data files.
_CONFIGS = (Path(__file__).parents[3] / "configs", Path(sysconfig.get_path("data")) / "share/ray-app-relevance/configs")


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] | None = None) -> Config:
    """Read a YAML config, apply `extends` and `a.b=c` overrides, and validate.

    Args:
        source: A file; or the name of a config that comes with the package, such as `demo.yaml`; or the tree itself, as YAML
            would give it.
        overrides: Such as `label.num_actors=8`, the value read as YAML.

    Raises:
        UserError: names the file or key, and for an unknown key the nearest known one.
    """
    if isinstance(source, Mapping):
        tree, where = _extended(dict(source), Path(), ()), "of this program"
    else:
        tree, where = read_tree(Path(source)), str(source)
    for text in overrides or []:
        _apply_override(tree, text)
    return _validated(_filled(tree, str(tree.get("output", ""))), where)


def find_config(path: Path) -> Path:
    """The file, or that of the same name among the configs that come with the package, if `path` is `NAME` or `configs/NAME`."""
    if not path.exists() and path.parent.name in {"", "configs"}:
        for folder in _CONFIGS:
            if (folder / path.name).exists():
                return folder / path.name
    return path


def with_overrides(cfg: Config, overrides: Mapping[str, Any]) -> Config:
    """The config with some keys changed, as by `--set`.

    Raises:
        UserError: as `load_config`.
    """
    tree = cfg.model_dump(mode="json")
    for key, value in overrides.items():
        _apply_override(tree, f"{key}={json.dumps(value)}")
    return _validated(tree, "with " + ", ".join(overrides))


def _validated(tree: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, where)) from None


def section_hash(*sections: BaseModel | dict[str, Any] | str | int | float | None) -> str:
    """Hash of resolved config sections: equal settings give equal hashes, whatever file they came from."""
    plain = [s.model_dump(mode="json") if isinstance(s, BaseModel) else s for s in sections]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML loader that refuses duplicate keys, where plain YAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if keys.count(name) > 1 and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {name!r}", key.start_mark)
        return super().construct_mapping(node, deep)


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file's mapping, with what it extends.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """
    path = find_config(path)
    if path.resolve() in seen:
        raise UserError(f"{path}: `extends` goes in a circle; remove one of them")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # a SafeLoader
    except FileNotFoundError:
        raise UserError(f"config {path} does not exist; the ones that come with the package: {_names()}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"config {path} is not valid YAML: {_problem(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"config {path} must be a mapping of keys, found {type(tree).__name__}")
    if isinstance(tree.get("experiments"), list):
        tree["experiments"] = [str((path.parent / str(name)).resolve()) for name in tree["experiments"]]
    return _extended(tree, path.parent, (*seen, path.resolve()))


def _extended(tree: dict[str, Any], folder: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The tree over the one that it extends: a file in `folder`, or a config that comes with the package."""
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    path = folder / str(parent)
    return _merge(read_tree(path if path.exists() else Path(str(parent)), seen), tree)


def _names() -> str:
    return ", ".join(sorted({path.name for folder in _CONFIGS for path in folder.glob("*.yaml")})) or "none"


def _problem(error: yaml.YAMLError) -> str:
    """Describe the problem and its place, without the line itself, which may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return type(error).__name__
    mark = error.problem_mark
    return " ".join(f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}".split())


def _filled(value: Any, output: str) -> Any:
    """The tree with `{output}` in its texts replaced, so that sources may be stored next to the output."""
    if isinstance(value, dict):
        return {key: _filled(inner, output) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, output) for inner in value]
    return value.replace("{output}", output) if isinstance(value, str) else value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            # A source of another adapter has other keys: it takes the place of the old one.
            same_kind = value.get("adapter", old.get("adapter")) == old.get("adapter")
            merged[key] = _merge(old, value) if same_kind else value
        else:
            merged[key] = value
    return merged


def _apply_override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    *parents, leaf = key.strip().split(".")
    if not equals or not leaf or "" in parents:
        raise UserError(f"--set {_shown(text)}: write it as section.key=value")
    node = tree
    for part in parents:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {_shown(text)}: {part!r} is a value, not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {_shown(text)}: the value is not valid YAML") from None


def _shown(override: str) -> str:
    """Return the key alone, as the value may be a secret."""
    key, equals, _ = override.partition("=")
    return repr(key.partition("://")[0] + equals)


def explain(error: ValidationError, path: str, root: type[BaseModel] | None = None) -> str:
    """One line for the first problem, naming the key and, for an unknown one, its nearest neighbour."""
    found = error.errors()  # a mistyped key is often reported as missing too; the key in the file is more informative
    first = next((problem for problem in found if problem["type"] == "extra_forbidden"), found[0])
    # Union tags and pydantic's own markers are part of `loc`, but not of the YAML.
    tags = _sources_by_tag()
    keys = [str(k) for k in first["loc"] if k not in tags]
    where = ".".join(keys)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], _known_keys(first["loc"], root or Config), n=1, cutoff=0.4)
        hint = f"; did you mean {'.'.join([*keys[:-1], near[0]])!r}?" if near else ""
        return f"config {path}: unknown key {where!r}{hint}{more}"
    if first["type"] == "missing":
        return f"config {path}: {where!r} is missing; add it{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_not_found":
        message = f"'adapter' is missing; it says how the source is read: {', '.join(map(str, sorted(tags, key=str)))}"
    return f"config {path}: {where!r}: {message}{more}" if where else f"config {path}: {message}{more}"


def _known_keys(loc: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """Keys allowed next to the last one of `loc`, found by walking the tree of sections."""
    by_tag = _sources_by_tag()
    model = root
    for part in loc[:-1]:
        if part in by_tag:
            model = by_tag[str(part)]
            continue
        field = model.model_fields.get(str(part))
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return list(model.model_fields)


def _sources_by_tag() -> dict[str | int, type[BaseModel]]:
    return {source.model_fields["adapter"].default: source for source in get_args(get_args(Source)[0])}
