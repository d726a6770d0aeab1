"""Backends of the student's query tower, and the choice of the fastest one on this machine that is exact enough."""

import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ray_app.base.cache_folder import one_at_a_time, private_folder
from ray_app.base.config import ServeConfig, section_hash
from ray_app.base.errors import UserError
from ray_app.base.extras import require_extra
from ray_app.base.hashing import sha256_of
from ray_app.models.checkpoint import read_distill_config
from ray_app.models.encoder_usage import with_prompt
from ray_app.models.text_encoder import run_bucketed
from ray_app.online.compiled_tower import CompiledTower, compile_tower
from ray_app.tables.provenance import package_versions

logger = logging.getLogger(__name__)

BACKENDS_VERSION = 3  # raised when files or measurements of another version must not be used
BATCH = 16  # texts of similar length in one pass; more gain nothing on a CPU
# In several scripts and lengths, as users type them: what engines are timed and compared on.
PROBES = (
    "mug", "red mug", "wedding hair", "small apartment balcony ideas", "usb c cable 2 m", "rote tasse", "chaussures homme",
    "赤いマグカップ", "लाल मग", "ideas para decorar una cocina pequeña", "how to build a raised garden bed on concrete",
    "nike air max 90", "coffee table", "vegan dinner recipes for two", "диван угловой", "blue dress with long sleeves",
)  # fmt: skip
_REPEATS = 5

Build = Callable[[], "Backend"]
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Backend(Protocol):
    """Texts -> unit vectors."""

    name: str
    report: dict[str, dict[str, float]]  # engine -> what was measured; empty if nothing was

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(num_texts, dim) float32 unit vectors, row i for text i; at least one text."""


class TorchBackend:
    """The tower as it was trained."""

    def __init__(self, name: str, folder: Path, dtype: str, threads: int, dim: int | None) -> None:
        from ray_app.models.tower_encoder import TowerEncoder

        self.name = name
        self.report: dict[str, dict[str, float]] = {}
        self._tower = TowerEncoder(folder, "query", dtype, threads, dim)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See Backend."""
        return self._tower.encode(texts, BATCH)


class FileBackend:
    """The tower in a file that needs no model code; token ids come from a tokenizer.json that cuts and pads by itself.

    Args:
        run: input_ids, attention_mask (B, T) int64 -> (B, width) float32, arrays.
        dim: Length of the vectors; None: as the file gives them.
    """

    def __init__(self, name: str, tokenizer: Path, run: Run, dim: int | None, prompt: str) -> None:
        from tokenizers import Tokenizer

        self.name, self._run, self._dim, self._prompt = name, run, dim, prompt
        self.report: dict[str, dict[str, float]] = {}
        self._tokenizer = Tokenizer.from_file(str(tokenizer))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See Backend."""
        return run_bucketed(with_prompt(self._prompt, texts), BATCH, self._encode_batch)

    def _encode_batch(self, texts: Sequence[str]) -> np.ndarray:
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([e.ids for e in encoded], np.int64)
        vectors = self._run(ids, np.array([e.attention_mask for e in encoded], np.int64))
        if self._dim is not None and self._dim < vectors.shape[1]:
            vectors = vectors[:, : self._dim]
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors, np.float32)


def _onnx_run(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A thread that spins between two queries takes its core from HTTP and ranking.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def choose_backend(folder: Path, cfg: ServeConfig, student_id: str, cache_dir: Path, dim: int | None = None) -> Backend:
    """The engine that a config names, or the fastest within `cfg.min_backend_cosine` of float32 for `auto`; warmed.

    What is made and measured is kept on this machine, so that its next replica starts at once.

    Args:
        cache_dir: Of this machine; native code is loaded from there, so nobody else may write to it.

    Raises:
        UserError: the student has no tower, the named engine does not work here or is not exact enough, or others can
            write to `cache_dir`.
    """
    if json.loads((folder / "model.json").read_text())["towers"] == 0:
        raise UserError("the feature-only student has no query tower: serve a release of the whole student")
    kept = private_folder(cache_dir / section_hash(student_id, BACKENDS_VERSION, package_versions()))
    measured = kept / f"measured-{_this_cpu()}-{cfg.cpu_threads}-{dim}.json"
    with one_at_a_time(kept):  # else replicas would measure each other
        builds = _builds(folder, kept, cfg.cpu_threads, dim)
        if cfg.query_encoder_backend != "auto":
            reference = builds["torch"]().encode(PROBES)
            backend = _tried(cfg.query_encoder_backend, builds[cfg.query_encoder_backend])
            cosine = _cosine(backend, reference)
            if cosine < cfg.min_backend_cosine:
                raise UserError(
                    f"serve.query_encoder_backend: {cfg.query_encoder_backend} has cosine {cosine} with float32, less than serve.min_backend_cosine ({cfg.min_backend_cosine})"
                )
            backend.report = {cfg.query_encoder_backend: {"cosine": cosine}}
            return backend
        report = _read(measured)
        if report is None:
            report = _measure(builds)
            _write(measured, json.dumps(report, indent=1).encode())
        good = {name: row for name, row in report.items() if row["cosine"] >= cfg.min_backend_cosine}
        name = min(
            good, key=lambda name: (good[name]["ms"], name)
        )  # torch is its own reference, so one is always there
        logger.info("queries are embedded by %s: %s", name, report)
        backend = _tried(name, builds[name])
        backend.report = report
        return backend


def _builds(folder: Path, kept: Path, threads: int, dim: int | None) -> dict[str, Build]:
    def torch_backend(name: str, dtype: str) -> Build:
        return lambda: TorchBackend(name, folder, dtype, threads, dim)

    prompt = read_distill_config(folder).query_prompt or ""

    def onnx() -> Backend:
        path = _made(kept / "model.onnx", lambda temp: _write_onnx(folder, temp))
        return FileBackend("onnx", _tokenizer(folder, kept), _onnx_run(path, threads), dim, prompt)

    def compiled() -> Backend:
        name = f"{_this_cpu()}-{threads}.pt2"  # code for another CPU would end the process
        path = _made(kept / name, lambda temp: compile_tower(folder, temp, threads))
        return FileBackend("compiled_bf16", _tokenizer(folder, kept), CompiledTower(path), dim, prompt)

    return {
        "torch": torch_backend("torch", "float32"), "torch_bf16": torch_backend("torch_bf16", "bfloat16"), "onnx": onnx,
        "compiled_bf16": compiled,
    }  # fmt: skip


def _tried(name: str, build: Build) -> Backend:
    try:
        backend = build()
        backend.encode(PROBES)
    except ImportError as error:
        require_extra("serve", f"serve.query_encoder_backend: {name}")
        raise UserError(f"serve.query_encoder_backend: {name}: {error}") from None
    except UserError as error:
        raise UserError(f"serve.query_encoder_backend: {name} does not work here: {error}") from None
    return backend


def _measure(builds: dict[str, Build]) -> dict[str, dict[str, float]]:
    """Cosine with float32, and milliseconds per query: the mean of one alone and one of eight together."""
    reference = builds["torch"]().encode(PROBES)
    report = {}
    for name, build in builds.items():
        try:
            backend = _tried(name, build)
        except Exception as error:  # noqa: BLE001 - whatever keeps an engine from working, the others serve
            logger.warning("%s is left out: %s", name, str(error).split("\n")[0][:300])
            continue
        alone = [_seconds(backend, [text]) for text in PROBES]
        together = [_seconds(backend, PROBES[at : at + 8]) / 8 for at in (0, 8)]
        ms = 500 * (float(np.mean(alone)) + float(np.mean(together)))
        report[name] = {
            "cosine": _cosine(backend, reference), "ms": round(ms, 3), "ms_alone": round(1000 * float(np.mean(alone)), 3)
        }  # fmt: skip
    return report


def _seconds(backend: Backend, texts: Sequence[str]) -> float:
    """Median of a few passes."""
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        backend.encode(texts)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def _cosine(backend: Backend, reference: np.ndarray) -> float:
    """The lowest cosine over the probes, each encoded alone and all together."""
    together = backend.encode(PROBES)
    alone = np.concatenate([backend.encode([text]) for text in PROBES])
    lowest = min(float(np.einsum("nd,nd->n", found, reference).min()) for found in (together, alone))
    return round(lowest, 6) if np.isfinite(lowest) else -1.0


def _tokenizer(folder: Path, kept: Path) -> Path:
    """Path of the student's tokenizer.json, with its limit of tokens in it."""

    def write(path: Path) -> None:
        from ray_app.models.bi_encoder import BiEncoder
        from ray_app.models.exports import backend_with_limit

        student = BiEncoder.from_pretrained(folder)
        backend_with_limit(student.tokenizer, student.cfg.max_query_tokens).save(str(path))

    return _made(kept / "tokenizer.json", write)


def _write_onnx(folder: Path, path: Path) -> None:
    from ray_app.models.bi_encoder import BiEncoder
    from ray_app.models.onnx_export import write_onnx

    write_onnx(BiEncoder.from_pretrained(folder), path)


def _this_cpu() -> str:
    """Names what native code, and a choice by time, depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return section_hash(platform.machine(), os.cpu_count(), *flags)


def _made(path: Path, write: Callable[[Path], None]) -> Path:
    """The file itself, after making it if it is not there or damaged."""
    if not _intact(path):
        with tempfile.TemporaryDirectory(dir=path.parent) as temp:
            made = Path(temp) / path.name
            write(made)
            with made.open("rb") as file:
                os.fsync(file.fileno())
            _write(
                path.with_suffix(".sha256"), sha256_of(made).encode()
            )  # first: a file without its hash is made again
            made.replace(path)
    return path


def _intact(path: Path) -> bool:
    try:
        return sha256_of(path) == path.with_suffix(".sha256").read_text()
    except OSError:
        return False


def _read(path: Path) -> dict[str, dict[str, float]] | None:
    try:
        report: dict[str, dict[str, float]] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return report


def _write(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)
