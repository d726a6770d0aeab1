"""Write docs/config.md: every config key with type, default, unit, range, and what changing it recomputes.

python .ci/config_reference.py            # tests/unit/test_docs.py fails while the page differs from what this writes
"""

import ast
import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ray_app.base.config import ChorusSource, Config, TableSource, UbiSource
from ray_app.base.config.training import NOT_IN_RECIPE, WorkersConfig

ROOT = Path(__file__).parents[1]


PAGE = ROOT / "docs" / "config.md"

NOTHING = "nothing"
ZERO_SHOT = [
    f"features.zero_shot_{name}"
    for name in ("model", "revision", "pooling", "query_prompt", "pin_prompt", "max_tokens")
]
# Section or key -> what a change of it recomputes; the longest entry that fits decides. Later stages follow if results differ.
RECOMPUTES = {
    "": NOTHING,
    "seed": "engagement, graph, train_teacher, sample, distill, evaluate",
    "demo": "demo, and all that follows",
    "ingest": "ingest",
    "caption": "caption",
    "caption.limits": "caption, images whose result they decide",
    "caption.num_gpus": "caption, if `dtype` is auto",
    "enrich": "enrich, engagement",
    "enrich.min_clients": "enrich, engagement, sample",
    "enrich.count_events_without_client": "enrich, engagement, sample",
    "engagement": "engagement",
    "graph": "graph",
    "pin_text": "zero_shot, corpus_statistics, train_teacher, sample, label, distill, embed",
    "features": "zero_shot, train_teacher, distill",
    "features.bm25_fields": "zero_shot, corpus_statistics, train_teacher, distill",
    "features.max_terms": "zero_shot, corpus_statistics, train_teacher, distill",
    **dict.fromkeys(ZERO_SHOT, "zero_shot, graph, train_teacher, distill"),
    "train_teacher": "train_teacher",
    "sample": "sample",
    "sample.pilot": NOTHING,
    "label.dtype": "label",
    "label.num_gpus": "label, if `dtype` is auto",
    "distill": "distill",
    "distill.dim": "distill, embed",
    "embed.truncate_dim": "embed",
    "embed.dtype": "zero_shot, graph, train_teacher, embed",
    "embed.num_gpus": "zero_shot, graph, train_teacher, embed, if `dtype` is auto",
    "evaluate": "evaluate",
    "adjudication": "agreement",
    "transfer": "transfer",
    "simulate": "simulate",
}
# Resources and sizes of the work: results are equal, so nothing is recomputed.
RESOURCES = {
    "num_actors", "max_actors", "num_cpus", "num_gpus", "accelerator_type", "max_restarts", "max_error_rate", "batch_size",
    "rows_per_block", "cost_sample_rows", "progress_interval_sec", "num_decode_tasks", "tensor_parallel", "pipeline_parallel",
    "engine_args", "backend", "prefix_sharing", "cpu_threads", "nice", "num_releases_to_keep",
}  # fmt: skip
UNITS = {
    "sec": "seconds", "ms": "milliseconds", "bytes": "bytes", "days": "days", "chars": "characters", "tokens": "tokens",
    "hour": "per hour", "pixels": "pixels", "side": "pixels", "size": "", "rows": "rows", "epochs": "epochs", "steps": "steps",
    "fraction": "share", "rate": "share", "clients": "clients", "dim": "dimensions", "pins": "pins", "queries": "queries",
}  # fmt: skip


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the docstring below it, of the class and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        (tree,) = ast.parse(inspect.getsource(cls)).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                found[field.target.id] = " ".join(str(text.value.value).split()).replace("None: ", "null: ")
    return found


def type_text(kind: Any) -> str:
    """A type as users of YAML call it."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return type_text(parts[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(part) for part in parts))
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin is list:
        return f"list of {type_text(parts[0])}"
    if origin is dict:
        return f"{type_text(parts[0])} -> {type_text(parts[1])}"
    names = {int: "integer", float: "number", str: "text", bool: "boolean", type(None): "null", Any: "any"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def limits_of(kind: Any, metadata: list[Any]) -> str:
    """Range of a number, as a formula; empty: any."""
    found = list(metadata)
    for part in typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,):
        for item in getattr(part, "__metadata__", ()):
            found += getattr(item, "metadata", [item])
    signs = {Gt: ("> {}", "gt"), Ge: (">= {}", "ge"), Lt: ("< {}", "lt"), Le: ("<= {}", "le")}
    texts = [
        form.format(getattr(item, name))
        for item in found
        for cls, (form, name) in signs.items()
        if isinstance(item, cls)
    ]
    return ", ".join(text.replace(".0", "") for text in dict.fromkeys(texts))


def unit_of(key: str) -> str:
    """Unit that a key's last word says; empty: none."""
    return UNITS.get(key.rpartition(".")[2].rpartition("_")[2], "")


def models_in(kind: Any) -> list[type[BaseModel]]:
    """Sections that a field may hold."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in typing.get_args(kind) for model in models_in(part)]


def recomputes(key: str) -> str:
    """What a change of the key recomputes."""
    section, _, name = key.partition(".")
    leaf = key.rpartition(".")[2]
    if key in RECOMPUTES:
        return RECOMPUTES[key]
    if section in {"caption", "label", "embed"} and leaf in RESOURCES:
        return NOTHING
    if section in {"train_teacher", "distill"} and (name in WorkersConfig.model_fields or leaf in NOT_IN_RECIPE):
        return NOTHING
    fits = [start for start in RECOMPUTES if not start or key == start or key.startswith(start + ".")]
    return RECOMPUTES[max(fits, key=len)]


def keys_of(
    model: type[BaseModel], prefix: str, default_of: BaseModel | None
) -> Iterator[tuple[str, FieldInfo, str, Any]]:
    """(key, field, description, default) of all leaves below a section; a section of several kinds is listed by its kinds."""
    texts = descriptions(model)
    for name, field in model.model_fields.items():
        key, default = f"{prefix}{name}", field.get_default(call_default_factory=True)
        if default_of is not None:
            default = getattr(default_of, name)
        inner = models_in(field.annotation)
        if len(inner) == 1:
            if texts.get(name) or not isinstance(default, BaseModel):
                yield key, field, texts.get(name, ""), default
            yield from keys_of(inner[0], f"{key}.", default if isinstance(default, BaseModel) else None)
        else:
            yield key, field, texts.get(name, ""), default


def default_text(default: Any) -> str:
    """A default as it is written in YAML."""
    if default is PydanticUndefined:
        return "**required**"
    if default is None:
        return "null"
    if isinstance(default, BaseModel):
        return "see below"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, str):
        return f"`{default}`" if default else '""'
    if isinstance(default, float | int):
        return f"{default:,}".replace(",", " ") if isinstance(default, int) else f"{default:g}"
    return f"`{default}`".replace("'", "")


def table(rows: list[tuple[str, FieldInfo, str, Any]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| key | type | default | range | a change recomputes | |", "|---|---|---|---|---|---|"]
    for key, field, text, default in rows:
        inner = models_in(field.annotation)
        kind = "section" if len(inner) == 1 else "one of the sources below" if inner else type_text(field.annotation)
        kind = "section or null" if len(inner) == 1 and type(None) in typing.get_args(field.annotation) else kind
        limits = " ".join(
            filter(None, [limits_of(field.annotation, field.metadata), unit_of(key) if not inner else ""])
        )
        cells = [f"`{key}`", kind, default_text(default), limits, recomputes(key), text]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def page() -> str:
    """The whole page."""
    lines = [
        "# Configuration reference", "",
        "<!-- Written by .ci/config_reference.py from ray_app/base/config. -->", "",
        "A config is a YAML file; `extends: other.yaml` reads another one first, and `--set a.b=c` overrides one key. An unknown key",
        "is an error. `{output}` in a text is replaced by the output folder. Defaults are those of the code: `configs/base.yaml` and",
        "the config that you extend may set others.", "",
        "A stage runs again if a setting of its own or the content of its inputs has changed. The column *a change recomputes* names the",
        "stages whose settings include the key; later stages follow if the results differ. *nothing* means that the next run takes",
        "over all results: the key is a resource, or is read when the program starts.", "",
    ]  # fmt: skip
    texts = descriptions(Config)
    for name, field in Config.model_fields.items():
        inner, default = models_in(field.annotation), field.get_default(call_default_factory=True)
        lines += [f"## {name}", ""]
        if texts.get(name):
            lines += [texts[name], ""]
        if not inner:
            lines += [*table([(name, field, "", default)]), ""]
            continue
        lines += [*(str(inner[0].__doc__).strip().splitlines()[:1] if inner[0].__doc__ else []), ""]
        lines += [*table(list(keys_of(inner[0], f"{name}.", default if isinstance(default, BaseModel) else None))), ""]
        if name == "ingest":
            for source in (TableSource, UbiSource, ChorusSource):
                lines += [f"### {source.__name__}", "", str(source.__doc__).strip(), ""]
                lines += [*table(list(keys_of(source, "ingest.*.", None))), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {page().count('| `')} keys")
