"""README.md of a model folder: a model card as the Hugging Face hub reads it. Pure functions of plain values.

Cards travel: no path or host name of the machine that trained the model may get into them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from ray_app.base.config import Config, DistillConfig, TeacherConfig, TrainConfig, section_hash
from ray_app.base.locales import UNKNOWN, language_of
from ray_app.models.truncation import describe

Kind = Literal["teacher", "student", "feature_only_student"]
_LICENSE = "The weights derive from the base model: the base model's licence applies."
_LOSSES = {
    "soft": "cross-entropy against the distribution of grades",
    "hard": "cross-entropy against the likeliest grade",
    "ordinal": "cumulative (ordinal) cross-entropy",
    "kl": "KL divergence with temperature",
}


def model_card(
    kind: Kind, cfg: Config, num_train: int, num_valid: int, history: list[dict[str, Any]], languages: Sequence[str],
    features: Sequence[str] = (), calibration: dict[str, Any] | None = None, truncation: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """The card of a trained model.

    Args:
        num_valid: Pairs that chose the best epoch.
        history: One entry per epoch with `epoch`, `train_loss` and `valid_loss`.
        languages: Languages or locales of the training texts, such as `en` or `de_DE`.
        truncation: What of the training texts it did not read, see `truncation.measure`; None: not measured.

    Returns:
        Markdown with YAML front matter.
    """
    section: TeacherConfig | DistillConfig = cfg.train_teacher if kind == "teacher" else cfg.distill
    train = cfg.distill.feature_train if kind == "feature_only_student" else section.train
    parts = [
        _front_matter(_meta(kind, cfg, languages)),
        f"# Search relevance: {kind.replace('_', ' ')}",
        _what(kind, cfg),
        "## Training",
        _training(kind, section, train, cfg.seed if train.seed is None else train.seed, num_train, num_valid, history),
        "## Loading",
        _loading(kind, cfg),
    ]
    if features:
        parts += ["## Pair features", "In this order, as they are; the model standardises them:"]
        parts += ["\n".join(f"{i}. `{name}`" for i, name in enumerate(features))]
    if calibration:
        parts += ["## Calibration", "\n".join(f"- {key}: {_number(value)}" for key, value in calibration.items())]
    parts += ["## Limits", _limits(kind, cfg, languages, truncation)]
    if kind != "feature_only_student":
        parts += ["## Licence", _LICENSE]
    return "\n\n".join(parts) + "\n"


def tower_card(
    tower: Literal["query", "pin"], base_model: str, max_tokens: int, dim: int, matryoshka_dims: Sequence[int], prompt: str = ""
) -> str:  # fmt: skip
    """The card of one tower of a student, exported as a sentence-transformers folder."""
    encode = {"query": "encode_query", "pin": "encode_document"}[tower]
    meta = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "base_model": public_source(base_model),
        "tags": ["sentence-transformers", "feature-extraction", "search-relevance"],
    }
    code = f"""```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("{tower}").{encode}(["a text"])  # (1, {dim}), unit length
```"""
    if prompt:
        code += f"\n\n`{encode}` puts the prompt `{json.dumps(prompt, ensure_ascii=False)}` before each text; other programs must do so themselves."
    cut = "The vectors were not trained to be cut: use them whole."
    if matryoshka_dims:
        shown = ", ".join(map(str, sorted(matryoshka_dims)))
        cut = f"The vectors also work cut to their first {shown} numbers: give `truncate_dim` to `SentenceTransformer`, and normalise again."
    what = (
        f"Turns a {tower}'s text into a unit vector of {dim} numbers; texts are cut to {max_tokens} tokens. Cosines between query and "
        "pin vectors rank pins; the student's head, which is not in this folder, makes them grades."
    )
    parts = [_front_matter(meta), f"# Search relevance: {tower} tower", what, code, cut, _LICENSE]
    return "\n\n".join(parts) + "\n"


def public_source(source: str) -> str:
    """Remove machine-specific parts of a model source: a local path becomes its last part."""
    if source.startswith("package:"):
        return source
    local = source.startswith(("/", ".", "~")) or source.count("/") > 1 or "\\" in source or Path(source).exists()
    return source.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if local else source


def _front_matter(meta: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(meta, sort_keys=False, allow_unicode=True)}---"


def _meta(kind: Kind, cfg: Config, languages: Sequence[str]) -> dict[str, Any]:
    codes = sorted({language_of(language) for language in languages} - {"", UNKNOWN})
    meta: dict[str, Any] = {"language": codes} if codes else {}
    if kind == "teacher":
        lora = cfg.train_teacher.lora_rank is not None
        meta |= {"library_name": "peft" if lora else "transformers", "pipeline_tag": "text-ranking"}
        tags = ["search-relevance", "cross-encoder", *(["lora"] if lora else [])]
    elif kind == "student":
        meta |= {"library_name": "transformers", "pipeline_tag": "sentence-similarity"}
        tags = [
            "search-relevance",
            "bi-encoder",
            "distillation",
            *(["matryoshka"] if cfg.distill.matryoshka_dims else []),
        ]
    else:
        return meta | {"library_name": "pytorch", "tags": ["search-relevance", "tabular", "distillation"]}
    base = cfg.train_teacher.base_model if kind == "teacher" else cfg.distill.base_model
    return meta | {"base_model": public_source(base), "tags": tags}


def _what(kind: Kind, cfg: Config) -> str:
    if kind == "teacher":
        return (
            "A cross-encoder: the language model reads query and pin together, and a small MLP gives the probabilities of "
            f"relevance grades 1 to 5. Pairs are cut to {cfg.train_teacher.max_tokens} tokens."
        )
    if kind == "feature_only_student":
        return (
            "A small MLP over pair features alone, without a language model: the baseline that the student must beat."
        )
    distill = cfg.distill
    towers = "one language model for both" if distill.shared_towers else "a language model each"
    nested = ""
    if distill.matryoshka_dims:
        nested = f" They also work cut to their first {', '.join(map(str, sorted(distill.matryoshka_dims)))} numbers (Matryoshka)."
    return (
        f"A bi-encoder, distilled from a cross-encoder teacher: query and pin ({towers}) become unit vectors of {distill.dim} numbers, and "
        f"a small MLP compares them and gives the probabilities of relevance grades 1 to 5.{nested}"
    )


def _training(
    kind: Kind, section: TeacherConfig | DistillConfig, train: TrainConfig, seed: int, num_train: int, num_valid: int,
    history: list[dict[str, Any]],
) -> str:  # fmt: skip
    lines = []
    if kind != "feature_only_student":
        revision = f", revision `{section.revision}`" if section.revision else ""
        lines.append(f"Base model: `{public_source(section.base_model)}`{revision}")
    if isinstance(section, TeacherConfig):
        if section.num_layers is not None:
            lines.append(f"Layers kept: the lowest {section.num_layers}")
        if section.lora_rank is not None:
            bits = ", over the base model in 4 bits" if section.quantize == "4bit" else ""
            lines.append(f"Adapters: LoRA of rank {section.lora_rank}{bits}")
    loss = _LOSSES[train.loss] + (
        f", margin-MSE of weight {train.margin_mse_weight:g}" if train.margin_mse_weight else ""
    )
    lines += [f"Pairs: {num_train:,} for training, {num_valid:,} for validation", f"Loss: {loss}"]
    losses = [(entry["valid_loss"], entry.get("epoch")) for entry in history if entry.get("valid_loss") is not None]
    lines.append(f"Epochs: {len(history)} of at most {train.epochs}")
    if losses:
        best, epoch = min(losses)
        lines.append(f"Best validation loss: {best:.4f}, epoch {epoch} (the first is 0), which was kept")
    elif history:
        lines.append("No validation pairs: no early stopping, the last epoch was kept")
    lines.append(f"Batch size {train.batch_size}, learning rate {train.learning_rate:g}, seed {seed}")
    lines.append(f"Recipe (hash of the settings): `{section_hash(section.recipe, seed)}`")
    return "\n".join(f"- {line}" for line in lines)


def _loading(kind: Kind, cfg: Config) -> str:
    if kind == "feature_only_student":
        code = 'from ray_app.models.bi_encoder import BiEncoder\n\nmodel = BiEncoder.from_pretrained(Path("folder"))'
        return f"With this project:\n\n{_python('from pathlib import Path', code)}"
    ours = "CrossEncoder" if kind == "teacher" else "BiEncoder"
    module = "cross_encoder" if kind == "teacher" else "bi_encoder"
    whole = _python(
        "from pathlib import Path\n", f"from ray_app.models.{module} import {ours}\n",
        f'model = {ours}.from_pretrained(Path("folder"))',
    )  # fmt: skip
    if kind == "teacher" and cfg.train_teacher.lora_rank is not None:
        plain = _python(
            "from peft import PeftModel", "from transformers import AutoModel, AutoTokenizer\n",
            *_base_code(cfg.train_teacher.base_model, cfg.train_teacher.revision, cfg.train_teacher.num_layers),
            'model = PeftModel.from_pretrained(base, "folder/lm")',
            'tokenizer = AutoTokenizer.from_pretrained("folder/lm")',
        )  # fmt: skip
        return f"The language model in plain transformers and peft:\n\n{plain}\n\nWith the head, by this project:\n\n{whole}"
    lines = [
        "from transformers import AutoModel, AutoTokenizer\n",
        'model = AutoModel.from_pretrained("folder/lm")',
        'tokenizer = AutoTokenizer.from_pretrained("folder/lm")',
    ]
    if kind == "student":
        lines[0] = f"from safetensors.torch import load_file\n{lines[0]}"
        if not cfg.distill.shared_towers:
            lines.insert(2, 'pin_model = AutoModel.from_pretrained("folder/lm_pin")')
        lines.append('weights = load_file("folder/head.safetensors")')
        lines.append("# vector = normalise(pooled states @ weights['projection.weight'].T)")
        lines.append("# text: after query_prompt or pin_prompt, states pooled by pooling, all in folder/model.json")
    text = (
        f"The language model in plain transformers:\n\n{_python(*lines)}\n\nWith the head, by this project:\n\n{whole}"
    )
    if kind == "student":
        text += "\n\n`python pipelines/export.py --config ...` writes the towers for sentence-transformers and as ONNX."
    return text


def _base_code(source: str, revision: str | None, num_layers: int | None) -> list[str]:
    """Lines that load the base model as `base`."""
    args, lines = [], []
    if source.startswith("package:"):
        name, _, inner = source.removeprefix("package:").partition("/")
        folder = inner
        if inner.endswith(".gguf"):
            folder, _, file = inner.rpartition("/")
            args.append(f'gguf_file="{file}"')
        lines += ["from importlib.resources import files", f'where = files("{name}") / "{folder}"  # of {source}']
        args.insert(0, "str(where)")
    else:
        args.append(f'"{public_source(source)}"')
    args += [f'revision="{revision}"'] if revision else []
    args += [f"num_hidden_layers={num_layers}"] if num_layers else []
    return [*lines, f"base = AutoModel.from_pretrained({', '.join(args)})"]


def _limits(kind: Kind, cfg: Config, languages: Sequence[str], truncation: dict[str, Any] | None) -> str:
    shown = ", ".join(sorted(set(languages)))
    lines = [
        f"Languages of the training texts: {shown}."
        if shown
        else "The languages of the training texts are not recorded."
    ]
    if kind == "teacher":
        lines.append(
            "Grades follow the raters and the guidelines of its training labels; other catalogues need other labels."
        )
    else:
        lines.append("Its labels are a teacher's: it repeats the teacher's errors.")
    if kind == "student":
        lines.append(
            f"It reads {cfg.distill.max_query_tokens} tokens of a query and {cfg.distill.max_pin_tokens} of a pin; the rest is cut."
        )
    if truncation:
        lines.append(f"Of its training texts, {describe(truncation)}.")
    lines.append("Validation loss is no measure of ranking: see the run's report for that.")
    return "\n".join(f"- {line}" for line in lines)


def _python(*lines: str) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_number(inner)}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
