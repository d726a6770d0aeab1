"""Usage of a published encoder: pooling of its states, and prompts before queries and pins.

The model's own files say it, in the layout of sentence-transformers: modules.json, the Pooling module's config.json and
config_sentence_transformers.json. A wrong pooling or a missing prompt raises no error, it only gives other vectors
than the model was trained for, so what these files ask for is done, asked for in the config, or refused.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray_app.base.config import DistillConfig, FeatureConfig
from ray_app.base.config.training import EncoderPooling
from ray_app.base.errors import UserError, one_line
from ray_app.models.backbone import is_causal, is_decoder_config
from ray_app.models.control_tokens import control_tokens
from ray_app.models.model_sources import peek_model_config, resolve
from ray_app.models.tokens import token_rows

logger = logging.getLogger(__name__)

Role = Literal["query", "pin"]

# In the documented order of encode_query and encode_document of sentence-transformers; and stella's.
# (6.2 adds an empty "document" of its own and so never comes to "passage"; a model that has one was trained with it.)
_PROMPT_NAMES: dict[Role, tuple[str, ...]] = {"query": ("query", "s2p_query"), "pin": ("document", "passage", "corpus")}
# Names of Pooling's `pooling_mode`, and of the flags `pooling_mode_*` that older files have, to ours.
_MODES = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last"}
_E5 = re.compile(r"(?<![a-z])e5(?![a-z])", re.IGNORECASE)  # published without a file that names their prompts
_MODULES = ("Transformer", "Pooling", "Normalize")  # our embeddings always have length 1


@dataclass(frozen=True, kw_only=True)
class EncoderUsage:
    """Pooling and prompts of an encoder: a part of recipes."""

    pooling: EncoderPooling  # `cls` (first token), `mean` or `last`, see `ray_app.models.pooling`
    query_prompt: str = ""  # before a query; may be empty
    pin_prompt: str = ""  # before a pin's title or text

    def prompt(self, role: Role) -> str:
        """Prompt of queries or of pins."""
        return {"query": self.query_prompt, "pin": self.pin_prompt}[role]


def with_prompt(prompt: str, texts: Sequence[str]) -> list[str]:
    """Prepend the prompt: called by all code that tokenises queries or pins for an encoder."""
    return [prompt + text for text in texts]


def check_prompt_fits(tokenizer: Any, prompt: str, max_tokens: int, keys: str) -> None:
    """Refuse a prompt with control tokens, or one that fills all tokens, so that all texts would get the same embedding.

    Raises:
        UserError: it is as long as `max_tokens`; the message names `keys`. Or it spells a control token, which would be read
            as letters, since a prompt is read together with a text.
    """
    if controls := sorted(name for name in control_tokens(tokenizer) if name in prompt):
        raise UserError(
            f"the prompt {prompt!r} has the control token {controls[0]!r}, which stands for itself in no text; leave it out of the "
            "prompt, or use another model"
        )
    (ids,) = token_rows(tokenizer, [prompt], max_tokens)
    if len(ids) >= max_tokens:
        raise UserError(f"the prompt {prompt!r} alone fills {max_tokens} tokens and leaves no text; raise {keys}")


def zero_shot_usage(cfg: FeatureConfig) -> EncoderUsage:
    """Read the usage of `features.zero_shot_model`.

    Raises:
        UserError: see `read_usage`.
    """
    return read_usage(
        cfg.zero_shot_model, cfg.zero_shot_revision, "features.zero_shot_", cfg.zero_shot_pooling,
        cfg.zero_shot_query_prompt, cfg.zero_shot_pin_prompt,
    )  # fmt: skip


def with_usage(cfg: DistillConfig) -> DistillConfig:
    """Return a copy with the base model's usage resolved, so that a student's files are complete without the base model's.

    Raises:
        UserError: see `read_usage`.
    """
    usage = read_usage(cfg.base_model, cfg.revision, "distill.", cfg.pooling, cfg.query_prompt, cfg.pin_prompt)
    return cfg.model_copy(
        update={"pooling": usage.pooling, "query_prompt": usage.query_prompt, "pin_prompt": usage.pin_prompt}
    )


def default_pooling(config: Any) -> EncoderPooling:
    """Pooling of a bare language model: `last` of a decoder, whose last token attends to all, else `mean`."""
    return "last" if is_decoder_config(config) else "mean"


def read_usage(
    source: str, revision: str | None, keys: str, pooling: EncoderPooling | None = None,
    query_prompt: str | None = None, pin_prompt: str | None = None,
) -> EncoderUsage:  # fmt: skip
    """Read the usage from the config, else from the model's files, else use `default_pooling` and no prompts.

    Args:
        keys: What the config's keys begin with, for error messages: `distill.` or `features.zero_shot_`.
        pooling: Of the config: the bare language model is pooled so, whatever modules its files list.

    Raises:
        UserError: the files ask for what is not supported, contradict themselves, or cannot be read.
    """
    files = _Files(source, revision, keys)
    if pooling is None:
        pooling = _own_pooling(files) or default_pooling(peek_model_config(source, revision))
    elif pooling == "cls" and is_causal(peek_model_config(source, revision)):
        raise UserError(
            f"{keys}pooling is cls, but {source!r} is a decoder: its first token has read nothing, and all texts would "
            f"get one vector; set {keys}pooling to last, or leave it out"
        )
    is_decided = query_prompt is not None or pin_prompt is not None
    if query_prompt is None:
        query_prompt = _own_prompt(files, "query")
    if pin_prompt is None:
        pin_prompt = _own_prompt(files, "pin")
    if _E5.search(source.rstrip("/").rpartition("/")[2]) and not (is_decided or query_prompt or pin_prompt):
        logger.warning(
            "model %s: E5 models are trained with the prompts 'query: ' and 'passage: ', which its files do not name; set "
            "%squery_prompt and %spin_prompt, to '' for none", source, keys, keys,
        )  # fmt: skip
    return EncoderUsage(pooling=pooling, query_prompt=query_prompt, pin_prompt=pin_prompt)


@dataclass(frozen=True)
class _Files:
    """The small files next to a model's weights."""

    source: str
    revision: str | None
    keys: str  # see `read_usage`

    def read(self, name: str) -> Any:
        """The content of a JSON file; None if the model has no such file."""
        path = self._path(name)
        if path is None:
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"model {self.source!r}: {name} is no JSON; get the model again") from None

    def _path(self, name: str) -> Path | None:
        local = Path(resolve(self.source))
        if local.exists():
            path = (local if local.is_dir() else local.parent) / name
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.source, name, revision=self.revision))
        except (OSError, ValueError, HfHubHTTPError, EntryNotFoundError) as error:
            absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
            known = try_to_load_from_cache(self.source, name, revision=self.revision) if not absent else None
            if isinstance(known, str):
                return Path(known)
            if absent or known is not None:  # the cache may record that there is no such file
                return None
            # Without an answer it is unknown whether the file exists: a guess would be silent.
            raise UserError(
                f"model {self.source!r}: cannot tell how it is used, since neither the hub nor its cache says whether there is a "
                f"{name} ({one_line(error)[:150]}); check the name, download the model whole, or set {self.keys}pooling, "
                f"{self.keys}query_prompt and {self.keys}pin_prompt"
            ) from None


def _own_pooling(files: _Files) -> EncoderPooling | None:
    """Read the pooling from the model's files; None if they have none."""
    folder = "1_Pooling"
    for module in files.read("modules.json") or []:
        library, _, kind = module["type"].rpartition(".")
        if kind not in _MODULES or not library.startswith("sentence_transformers."):
            raise UserError(
                f"model {files.source!r}: modules.json has the module {module['type']}, which is not supported; use another "
                f"model, or set {files.keys}pooling to take the bare language model without it"
            )
        folder = module["path"] if kind == "Pooling" else folder
    stored = files.read(f"{folder}/config.json")
    if stored is None:
        return None
    found = stored.get("pooling_mode")
    if found is None:
        flags = {
            name.removeprefix("pooling_mode_"): on for name, on in stored.items() if name.startswith("pooling_mode_")
        }
        found = [name for name, on in flags.items() if on] or ["mean_tokens"]  # sentence-transformers' default
    names = [found] if isinstance(found, str) else found
    if len(names) != 1 or names[0] not in _MODES:
        raise UserError(
            f"model {files.source!r}: {folder}/config.json pools by {' and '.join(map(str, names))} (pooling_mode), which is "
            f"not supported; use another model, or set {files.keys}pooling to cls, mean or last"
        )
    if not stored.get("include_prompt", True):
        raise UserError(
            f"model {files.source!r}: {folder}/config.json leaves the prompt's tokens out of the pooling (include_prompt), "
            f"which is not supported; use another model, or set {files.keys}pooling to pool them too"
        )
    return _MODES[names[0]]  # type: ignore[return-value]


def _own_prompt(files: _Files, role: Role) -> str:
    """The prompt that the model's files name for a role; "" if they name none."""
    stored = files.read("config_sentence_transformers.json") or {}
    prompts = {name: prompt for name, prompt in (stored.get("prompts") or {}).items() if prompt is not None}
    for name in _PROMPT_NAMES[role]:
        if name in prompts:
            return str(prompts[name])
    default = stored.get("default_prompt_name")
    if prompts.get(default) and not any(default in names for names in _PROMPT_NAMES.values()):
        # sentence-transformers' encode() puts it before all texts, its encode_query() and encode_document() before none.
        raise UserError(
            f"model {files.source!r}: config_sentence_transformers.json names no prompt for a {role}, and {default!r} for "
            f"anything (default_prompt_name); set {files.keys}{role}_prompt to {prompts[default]!r}, or to '' for none"
        )
    return ""
