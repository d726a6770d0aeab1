"""Engines of the query tower: the same vectors as the tower, and only whole files of it."""

import shutil

import numpy as np
import pytest

from ray_app.base.config import DistillConfig, ServeConfig
from ray_app.base.errors import UserError
from ray_app.models.bi_encoder import BiEncoder
from ray_app.models.head import FeatureScaler
from ray_app.models.tower_encoder import TowerEncoder
from ray_app.online.query_encoders import PROBES, choose_backend

pytestmark = pytest.mark.slow

TEXTS = [*PROBES, "red " * 300, "mug", "a", "赤い" * 40]
SCALER = FeatureScaler(np.zeros(2), np.ones(2))


def config(backend, **more):
    return ServeConfig.model_validate({"query_encoder_backend": backend} | more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_encoder):
    cfg = DistillConfig(
        base_model=tiny_encoder, dim=16, matryoshka_dims=[8], max_query_tokens=12, pooling="cls", query_prompt="blue hub: ",
        pin_prompt="shoe: ",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("student")
    BiEncoder.from_base(cfg, SCALER).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("backends")


@pytest.mark.parametrize(
    ("name", "close"), [("torch", 1e-6), ("onnx", 1e-5), ("torch_bf16", 2e-2), ("compiled_bf16", 2e-2)]
)
@pytest.mark.parametrize("dim", [None, 8])
def test_every_engine_gives_the_towers_vectors(folder, cache_dir, name, close, dim):
    """A query that an engine reads otherwise (cut, padded, other ids) would meet the wrong pins, and nobody would notice."""
    backend = choose_backend(folder, config(name, min_backend_cosine=0.9), "student", cache_dir, dim)
    wanted = TowerEncoder(folder, "query", "float32", 1, dim).encode(TEXTS, 4)
    together = backend.encode(TEXTS)
    alone = np.concatenate([backend.encode([text]) for text in reversed(TEXTS)])[::-1]
    assert backend.name == name and together.dtype == np.float32
    for found in (together, alone):
        assert np.einsum("nd,nd->n", found, wanted).min() > 1 - close
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)


def test_auto_takes_an_engine_that_is_exact_enough_and_the_next_replica_need_not_measure(folder, cache_dir):
    first = choose_backend(folder, config("auto", min_backend_cosine=0.99999), "student", cache_dir)
    again = choose_backend(folder, config("auto", min_backend_cosine=0.99999), "student", cache_dir)
    assert first.name in ("torch", "onnx")
    assert {"torch", "torch_bf16", "onnx", "compiled_bf16"} == set(first.report)
    assert again.report == first.report  # timings are never equal twice


def test_a_named_engine_that_is_not_exact_enough_is_refused(folder, cache_dir):
    with pytest.raises(UserError, match=r"serve\.query_encoder_backend: torch_bf16 has cosine 0\.9"):
        choose_backend(folder, config("torch_bf16", min_backend_cosine=1.0), "student", cache_dir)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_file_is_made_again_and_never_served(folder, cache_dir, tmp_path, damage):
    wanted = choose_backend(folder, config("onnx"), "student", cache_dir).encode(TEXTS)
    kept = shutil.copytree(cache_dir, tmp_path / "kept")
    (path,) = kept.glob("*/model.onnx")
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-50] if damage == "cut" else data[:-50] + bytes(50))
    found = choose_backend(folder, config("onnx"), "student", kept).encode(TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_another_student_never_meets_this_ones_files(folder, tmp_path, tiny_encoder):
    choose_backend(folder, config("onnx"), "one", tmp_path)
    other = tmp_path / "other"
    cfg = DistillConfig(base_model=tiny_encoder, dim=6, max_query_tokens=12)
    BiEncoder.from_base(cfg, SCALER).save_pretrained(other)
    assert choose_backend(other, config("onnx"), "two", tmp_path).encode(["mug"]).shape == (1, 6)


def test_a_student_without_towers_cannot_embed_queries(tmp_path):
    BiEncoder.feature_only_student(DistillConfig(base_model="none"), SCALER).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no query tower"):
        choose_backend(tmp_path, config("auto"), "features", tmp_path / "kept")


def test_without_a_compiler_the_other_engines_serve(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert choose_backend(folder, config("auto"), "student", tmp_path).name != "compiled_bf16"
    with pytest.raises(
        UserError, match=r"serve\.query_encoder_backend: compiled_bf16 does not work here: .*C\+\+ compiler"
    ):
        choose_backend(folder, config("compiled_bf16"), "student", tmp_path)
