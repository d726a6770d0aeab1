"""An export is the same model: other programs must get the vectors that the catalogue was embedded with."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_app.base.config import DistillConfig
from ray_app.base.errors import UserError
from ray_app.base.extras import EXTRAS
from ray_app.base.storage import Storage
from ray_app.models import exports, onnx_export
from ray_app.models.bi_encoder import BiEncoder
from ray_app.models.checkpoint import finished_model, save_model
from ray_app.models.head import FeatureScaler
from ray_app.models.tower_encoder import TowerEncoder
from ray_app.tables.manifest import Output

pytestmark = pytest.mark.slow

TEXTS = ["red cup", "usb hub", "a", "a small red cup for the laptop", "shoe " * 30]
FEATURES = np.arange(10, dtype=np.float32).reshape(5, 2)
FOLDER = "models/student/abc"

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in EXTRAS["export"]),
    reason="needs the extra `export`: pip install -e '.[export]'",
)


def make_student(source: str, **overrides: object) -> BiEncoder:
    """A student with two towers that differ, and lengths that cut the longest text differently."""
    torch.manual_seed(1)
    cfg = DistillConfig.model_validate(
        {"base_model": source, "dim": 8, "matryoshka_dims": [4], "hidden_dim": 8, "shared_towers": False,
         "max_query_tokens": 6, "max_pin_tokens": 12} | overrides
    )  # fmt: skip
    student = BiEncoder.from_base(cfg, FeatureScaler.fit(FEATURES)).eval()
    with torch.no_grad():
        for parameter in [] if student.pin_backbone is None else student.pin_backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return student


def saved(student: BiEncoder, root: Path) -> tuple[Storage, Output]:
    store = Storage(str(root))
    save_model(student, store, FOLDER, [], {"calibration.json": "{}"})
    return store, finished_model(store, FOLDER)


def exported(student: BiEncoder, root: Path, to: str = "", onnx: bool = False) -> Path:
    """Folder of its export."""
    store, output = saved(student, root)
    return root / to / exports.export_student(store, output, Storage(str(root / to)), "exports", onnx=onnx)


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def export(request, tmp_path_factory) -> tuple[Path, Path]:
    """(folder of the student, folder of its export without ONNX)."""
    root = tmp_path_factory.mktemp("run")
    folder = exported(make_student(request.getfixturevalue(f"tiny_{request.param}")), root)
    return root / FOLDER, folder


@pytest.mark.parametrize("tower", ["query", "pin"])
def test_sentence_transformers_gives_our_vectors_also_cut(export, tower) -> None:
    module = pytest.importorskip("sentence_transformers", reason="needs pip install sentence-transformers")
    student, folder = export
    ours = TowerEncoder(student, tower, "float32").encode(TEXTS, 2)
    theirs = module.SentenceTransformer(str(folder / tower), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS, batch_size=3), ours, atol=1e-5)
    cut = module.SentenceTransformer(str(folder / tower), device="cpu", truncate_dim=4)
    expected = ours[:, :4] / np.linalg.norm(ours[:, :4], axis=1, keepdims=True)
    np.testing.assert_allclose(cut.encode(TEXTS, normalize_embeddings=True), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_prompts_and_pooling_travel_with_the_towers(tiny_encoder, tmp_path, pooling) -> None:
    """Who opens an export knows no prompt of ours; without it a query meets other pins."""
    module = pytest.importorskip("sentence_transformers", reason="needs pip install sentence-transformers")
    base = shutil.copytree(tiny_encoder, tmp_path / "base")
    student = make_student(str(base), pooling=pooling, query_prompt="blue ", pin_prompt="usb hub ")
    saved(student, tmp_path)
    shutil.rmtree(base)  # a released student asks nobody
    folder = exported(student, tmp_path)
    unprompted = student.cfg.model_copy(update={"query_prompt": "", "pin_prompt": ""})
    for tower, encode in (("query", "encode_query"), ("pin", "encode_document")):
        ours = TowerEncoder(tmp_path / FOLDER, tower, "float32").encode(TEXTS, 2)
        theirs = module.SentenceTransformer(str(folder / tower), device="cpu")
        np.testing.assert_allclose(getattr(theirs, encode)(TEXTS), ours, atol=1e-5)
        np.testing.assert_allclose(theirs.encode(TEXTS), ours, atol=1e-5)
        student.cfg = unprompted
        student.save_pretrained(tmp_path / "plain")
        assert np.abs(TowerEncoder(tmp_path / "plain", tower, "float32").encode(TEXTS, 2) - ours).max() > 1e-3
        card = (folder / tower / "README.md").read_text()
        assert encode in card and {"query": "blue ", "pin": "usb hub "}[tower] in card
    read = exports.read_weights(folder)
    assert (read.pooling, read.cfg.query_prompt, read.cfg.pin_prompt) == (pooling, "blue ", "usb hub ")


def test_the_one_file_holds_the_whole_student(export) -> None:
    """Head and scaler too: else vectors come without what makes grades of them."""
    student, folder = export
    models = BiEncoder.from_pretrained(student), exports.read_weights(folder)
    with torch.inference_mode():
        ours, theirs = (model(model.prepare(TEXTS, TEXTS[::-1], FEATURES)) for model in models)
    torch.testing.assert_close(theirs, ours)
    assert (folder / "calibration.json").read_text() == "{}"


def test_no_path_of_this_machine_gets_into_an_export(export) -> None:
    student, folder = export
    source = json.loads((student / "model.json").read_text())["config"]["base_model"]
    assert source.startswith("/")
    texts = [path.read_text() for path in folder.rglob("*") if path.suffix in {".json", ".md"}]
    assert not [text for text in texts if source in text or str(Path(source).parent) in text]


def test_a_second_run_does_no_work_and_another_student_does(tiny_encoder, tmp_path) -> None:
    file = exported(make_student(tiny_encoder), tmp_path) / "student.safetensors"
    before = file.stat().st_mtime_ns
    exported(make_student(tiny_encoder), tmp_path)
    assert file.stat().st_mtime_ns == before
    exported(make_student(tiny_encoder, dim=6), tmp_path)
    assert file.stat().st_mtime_ns != before


def test_an_export_that_was_cut_off_is_made_again(tiny_encoder, tmp_path) -> None:
    folder = exported(make_student(tiny_encoder), tmp_path, "to")
    (folder / "files.json").unlink()
    (folder / "student.safetensors").write_bytes(b"torn")
    exported(make_student(tiny_encoder), tmp_path, "to")
    assert len((folder / "student.safetensors").read_bytes()) > 4


def test_a_feature_only_student_is_refused(tmp_path) -> None:
    student = BiEncoder.feature_only_student(DistillConfig(base_model="none"), FeatureScaler.fit(FEATURES))
    with pytest.raises(UserError, match="no towers"):
        exports.write_export(student, tmp_path, "x", onnx=False)


def test_without_the_packages_onnx_names_its_extra(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    output = Output(name="student", path=FOLDER, files=[], rows=0, content_hash="x")
    with pytest.raises(UserError, match=r"\[export\]"):
        exports.export_student(Storage(str(tmp_path)), output, Storage(str(tmp_path)), "exports")


@needs_onnx
@pytest.mark.parametrize(("kind", "one_file_bytes"), [("encoder", onnx_export._ONE_FILE_BYTES), ("decoder", 0)])
def test_onnx_gives_our_vectors_with_tokenizers_alone(request, kind, one_file_bytes, monkeypatch, tmp_path) -> None:
    """As a server without torch would use it: tokenizer.json, onnxruntime, nothing else; weights in the file or beside it."""
    import onnxruntime
    from tokenizers import Tokenizer

    monkeypatch.setattr(onnx_export, "_ONE_FILE_BYTES", one_file_bytes)
    folder = exported(make_student(request.getfixturevalue(f"tiny_{kind}")), tmp_path, onnx=True)
    assert (folder / f"{exports.ONNX_FILE}.data").exists() == (one_file_bytes == 0)
    session = onnxruntime.InferenceSession(str(folder / exports.ONNX_FILE))
    encoded = Tokenizer.from_file(str(folder / "query/tokenizer.json")).encode_batch(TEXTS)
    ids, mask = np.array([e.ids for e in encoded]), np.array([e.attention_mask for e in encoded])
    (vectors,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    np.testing.assert_allclose(vectors, TowerEncoder(tmp_path / FOLDER, "query", "float32").encode(TEXTS, 5), atol=1e-4)
    student = BiEncoder.from_pretrained(tmp_path / FOLDER)
    assert onnx_export.onnx_difference(student, folder / exports.ONNX_FILE) < 1e-5
    with torch.no_grad():
        student.projection.weight[0].mul_(2.0)
    assert onnx_export.onnx_difference(student, folder / exports.ONNX_FILE) > onnx_export.MAX_ONNX_DIFFERENCE
