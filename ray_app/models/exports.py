"""The trained student in common formats: sentence-transformers folders, ONNX, one file with all weights.

A sentence-transformers folder is a transformers folder plus a few small JSON files, so they are written here, in the
layout that its versions 2 to 6 share (tested with 6.2), and the package is not needed.
"""

import copy
import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_app.base.config import DistillConfig
from ray_app.base.errors import UserError
from ray_app.base.extras import require_extra
from ray_app.base.storage import Storage
from ray_app.models.calibration import FILE as CALIBRATION_FILE
from ray_app.models.control_tokens import control_tokens, text_only_backend
from ray_app.models.encoder_usage import Role
from ray_app.models.head import FeatureScaler
from ray_app.models.model_card import public_source, tower_card
from ray_app.models.model_sources import open_tokenizer
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output
from ray_app.tables.model_files import model_files, read_model_file

if TYPE_CHECKING:
    from ray_app.models.bi_encoder import BiEncoder
from ray_app.models.onnx_export import write_onnx

logger = logging.getLogger(__name__)

EXPORT_VERSION = 3  # raised when the export of the same student changes
ONNX_FILE = "query/onnx/model.onnx"
_ST_POOLING = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
_ST_PROMPTS: dict[Role, str] = {"query": "query", "pin": "document"}
# In several scripts: texts that exported tokenizers are compared on, in addition to the spellings of control tokens.
_PROBES = ("red mug, 12 cm", "Für die Küche", "赤いマグカップ", "लाल मग", "ñandú  e\u0301 🏺", "")
_MODULES = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize"))


def export_student(store: Storage, student: Output, target: Storage, folder: str, onnx: bool = True) -> str:
    """Write `student` under `<folder>/<student id>/` of `target`, unless it is there already.

    Args:
        folder: Under the target's root; may be empty.

    Returns:
        The export's folder under the target's root. `files.json` in it was written last.

    Raises:
        UserError: a package for ONNX is missing; the message names the extra.
    """
    path = "/".join(part for part in (folder, student.path.rsplit("/", 1)[-1]) if part)
    if _finished(target, path, student, onnx):
        logger.info("export: up to date")
        return path
    if onnx:
        require_extra("export", "ONNX", "or export without it: --no-onnx")
    from ray_app.models.bi_encoder import BiEncoder

    model = BiEncoder.from_pretrained(local_folder(store, student))
    target.delete(f"{path}/files.json")
    with tempfile.TemporaryDirectory() as temp:
        write_export(model, Path(temp), student.content_hash, onnx)
        files = target.write_folder(path, Path(temp))
    if f"{student.path}/{CALIBRATION_FILE}" in student.files:
        calibration = read_model_file(store, student, CALIBRATION_FILE)
        files.append(target.write_bytes(f"{path}/{CALIBRATION_FILE}", calibration))
    target.write_json(f"{path}/files.json", [asdict(file) for file in files])
    return path


def write_export(student: "BiEncoder", folder: Path, content_hash: str, onnx: bool = True) -> None:
    """Write all files of an export but `files.json` to a local folder."""
    if student.backbone is None:
        raise UserError("the feature-only student has no towers: there is nothing to export")
    from ray_app.models.bi_preparer import TOWERS

    for name in TOWERS:
        write_tower(student, name, folder / name)
    write_weights(student, folder, content_hash)
    if onnx:
        write_onnx(student, folder / ONNX_FILE)


def write_tower(student: "BiEncoder", name: Role, folder: Path) -> None:
    """Write tower `query` or `pin` as a sentence-transformers folder.

    `encode_query` of the one and `encode_document` of the other give the student's vectors; so does `encode` of each.
    """
    from safetensors.torch import save_file

    from ray_app.models.bi_preparer import TOWERS, tower_limit, tower_prompt

    cfg = student.cfg
    backbone, projection = student.tower(name)
    limit = tower_limit(cfg, name)
    prompts = {_ST_PROMPTS[tower]: tower_prompt(cfg, tower) for tower in TOWERS}
    backbone.save_pretrained(folder)
    save_tokenizer(student.tokenizer, limit, folder)
    width, dim = projection.in_features, projection.out_features
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(_MODULES)
    ]
    pooling = {"word_embedding_dimension": width} | {
        f"pooling_mode_{mode}": mode == _ST_POOLING[student.pooling]
        for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    }  # fmt: skip
    dense = {"in_features": width, "out_features": dim, "bias": False}
    dense |= {"activation_function": "torch.nn.modules.linear.Identity"}
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})
    default = _ST_PROMPTS[name] if prompts[_ST_PROMPTS[name]] else None
    settings = {"prompts": prompts, "default_prompt_name": default, "similarity_fn_name": "cosine"}
    _write_json(folder / "config_sentence_transformers.json", settings)
    _write_json(folder / "1_Pooling/config.json", pooling)
    _write_json(folder / "2_Dense/config.json", dense)
    save_file({"linear.weight": projection.weight.detach().cpu().contiguous()}, folder / "2_Dense/model.safetensors")
    _write_json(folder / "3_Normalize/config.json", {})
    card = tower_card(name, cfg.base_model, limit, cfg.dim, cfg.matryoshka_dims, tower_prompt(cfg, name))
    (folder / "README.md").write_text(card)


def write_weights(student: "BiEncoder", folder: Path, content_hash: str) -> None:
    """Write `student.safetensors` (towers, heads, feature scaler) and `config.json`; `read_weights` reads them."""
    import torch
    from safetensors.torch import save_file

    weights = {name: tensor.cpu().contiguous() for name, tensor in student.state_dict().items()}
    weights["scaler.mean"] = torch.from_numpy(student.scaler.mean)
    weights["scaler.std"] = torch.from_numpy(student.scaler.std)
    save_file(weights, folder / "student.safetensors")
    cfg = student.cfg.model_dump(mode="json") | {"base_model": public_source(student.cfg.base_model)}
    about = {
        "kind": "bi_encoder", "export_version": EXPORT_VERSION, "student": content_hash, "towers": len(student.backbones),
        "pooling": student.pooling, "backbone": student.backbone.config.to_diff_dict(), "config": cfg,
    }  # fmt: skip
    _write_json(folder / "config.json", about)


def read_weights(folder: Path) -> "BiEncoder":
    """The student of an export, in evaluation mode, from `student.safetensors`, `config.json` and `query/`'s tokenizer."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    from ray_app.models.bi_encoder import BiEncoder

    about = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "student.safetensors")
    scaler = FeatureScaler(weights.pop("scaler.mean").numpy(), weights.pop("scaler.std").numpy())
    backbone = AutoModel.from_config(AutoConfig.for_model(**about["backbone"]), trust_remote_code=False)
    tokenizer = open_tokenizer(folder / "query")
    pin_backbone = copy.deepcopy(backbone) if about["towers"] == 2 else None
    student = BiEncoder(backbone, tokenizer, DistillConfig.model_validate(about["config"]), scaler, pin_backbone)
    student.load_state_dict(weights)
    return student.eval()


def _finished(target: Storage, path: str, student: Output, onnx: bool) -> bool:
    files = model_files(target, path)
    if files is None or not all(target.exists(file.path) for file in files):
        return False
    about = target.read_json(f"{path}/config.json")
    made = (about.get("export_version"), about.get("student")) == (EXPORT_VERSION, student.content_hash)
    return made and (not onnx or f"{path}/{ONNX_FILE}" in {file.path for file in files})


def save_tokenizer(tokenizer: Any, limit: int, folder: Path) -> None:
    """Write tokenizer.json, which truncates, pads and reads texts on its own, and tokenizer_config.json for transformers.

    Raises:
        UserError: `tokenizers` or transformers would read texts otherwise from these files than we do; see `text_only_backend`
            too.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    own = copy.deepcopy(tokenizer)
    own.model_max_length = limit
    own.save_pretrained(folder)
    backend_with_limit(tokenizer, limit).save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    controls = sorted(control_tokens(tokenizer).items(), key=lambda item: item[1])
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    settings = json.loads(path.read_text()) | {
        # A model's own class would be built from the vocabulary, without the rest of tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": list(tokenizer.model_input_names),
        "added_tokens_decoder": {str(number): {"content": name} | flags for name, number in controls},
    }
    _write_json(path, settings)
    texts = [*_PROBES, *(f"a {name} b{name}" for name, _ in controls)]
    ours = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    alone.no_padding()
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    read = {
        "tokenizers": [encoded.ids for encoded in alone.encode_batch(texts)],
        "transformers": again(texts, truncation=True, max_length=limit)["input_ids"],
    }
    for library, rows in read.items():
        if differing := [text for text, row, own_row in zip(texts, rows, ours, strict=True) if row != own_row]:
            raise UserError(
                f"{library} reads {differing[0]!r} otherwise from the exported tokenizer than the student does, so it is not "
                "exported; use another distill.base_model"
            )


def backend_with_limit(tokenizer: Any, limit: int) -> Any:
    """A copy of the student's tokenizer for `tokenizers` alone, which makes the ONNX file's inputs on its own."""
    backend = text_only_backend(tokenizer)
    backend.enable_truncation(limit)
    backend.enable_padding(
        direction=tokenizer.padding_side, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token
    )
    return backend


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
