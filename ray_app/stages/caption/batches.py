"""Batch functions of the Ray workers: read and decode images (CPU), then caption them (device)."""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_app.base.config import CaptionConfig, ImageLimits
from ray_app.base.images.decode import ImageError, decode
from ray_app.base.images.fetch import HostBudget
from ray_app.base.storage import Storage
from ray_app.cluster.failures import BlockFailedError, fatal_line
from ray_app.cluster.vllm_engine import INFERENCE_ERROR
from ray_app.stages.caption.engine import TransformersCaptioner
from ray_app.stages.caption.image_files import READ_THREADS

if TYPE_CHECKING:
    from PIL import Image

DECODED = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("pixels", pa.large_binary()),  # RGB, row by row; null: see error
        pa.field("error", pa.string()),
        pa.field("transient", pa.bool_()),  # the error may be gone next time: not to be kept
        pa.field("decode_sec", pa.float64()),  # of one worker, reading included
    ]
)
ANSWERS = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),
        pa.field("text", pa.string()),  # as the model said it; null: see error
        pa.field("error", pa.string()),
        pa.field("transient", pa.bool_()),
        pa.field("decode_sec", pa.float64()),
        pa.field("started", pa.float64()),  # Unix seconds, of the row's batch or request in the engine; null: error
        pa.field("finished", pa.float64()),
    ]
)


def load_images(job: pa.Table, store: Storage, limits: ImageLimits, batch_size: int) -> Iterator[pa.Table]:
    """Read and decode.

    Args:
        job: Of schema SOURCES; all rows by location, or all in one file of the pins table.
        store: Where the pins table lies.
        limits: Of pictures.
        batch_size: Rows per table that is yielded.

    Yields:
        Tables of schema DECODED. A picture that cannot be decoded, or is another than the one that was hashed, is an
        error row.
    """
    hosts = HostBudget()
    part = job["part"][0].as_py()
    column = store.read_table(part, ["image_bytes"])["image_bytes"] if part else None
    for start in range(0, job.num_rows, batch_size):
        rows = job.slice(start, batch_size).to_pylist()
        began = time.monotonic()
        if column is None:
            with ThreadPoolExecutor(READ_THREADS) as threads:
                contents = list(threads.map(lambda row: _read(hosts, row["location"], limits), rows))
        else:
            contents = [column[row["row"]].as_py() for row in rows]
        decoded = [_decode(row, content, limits) for row, content in zip(rows, contents, strict=True)]
        seconds = (time.monotonic() - began) / len(rows)
        yield pa.Table.from_pylist([row | {"decode_sec": seconds} for row in decoded], schema=DECODED)


def _read(hosts: HostBudget, location: str, limits: ImageLimits) -> bytes | ImageError:
    try:
        return hosts.read(location, limits)
    except ImageError as error:
        return error


def _decode(row: dict[str, Any], content: bytes | ImageError, limits: ImageLimits) -> dict[str, Any]:
    key = {"content_key": row["content_key"], "transient": False}
    if isinstance(content, ImageError):
        return key | {"error": str(content), "transient": True}
    if hashlib.sha256(content).hexdigest() != row["sha256"]:
        # Its caption would stand under the other picture's key for ever.
        return key | {"error": "changed: not the picture that was there when the job began", "transient": True}
    try:
        image = decode(content, limits)
    except ImageError as error:
        return key | {"error": str(error)}
    return key | {"error": None, "width": image.width, "height": image.height, "pixels": image.tobytes()}


def to_image(width: int, height: int, pixels: bytes | memoryview) -> "Image.Image":
    """The RGB picture of a row of DECODED."""
    from PIL import Image

    return Image.frombytes("RGB", (width, height), pixels)


class CaptionUDF:
    """Ray actor: the model, loaded once and warmed up, so that timings hold no start-up."""

    def __init__(self, cfg: CaptionConfig, cpu_threads: int) -> None:
        try:
            self.captioner = TransformersCaptioner(cfg, cpu_threads)
            self.captioner.caption([to_image(64, 64, b"\xff" * (64 * 64 * 3))])
        except Exception as error:
            raise BlockFailedError(fatal_line("caption", error)) from error

    def __call__(self, block: pa.Table) -> pa.Table:
        """DECODED -> ANSWERS, one batch."""
        try:
            return self._answer(block)
        except Exception as error:
            raise BlockFailedError(fatal_line("caption", error)) from error

    def _answer(self, block: pa.Table) -> pa.Table:
        rows = block.to_pylist()
        good = [row for row in rows if row["error"] is None]
        started = time.time()
        answers = self.captioner.answer([to_image(row["width"], row["height"], row["pixels"]) for row in good])
        finished = time.time()
        for row, answer in zip(good, answers, strict=True):
            row |= {"text": answer.text, "error": answer.error, "started": started, "finished": finished}
        return pa.Table.from_pylist([{name: row.get(name) for name in ANSWERS.names} for row in rows], schema=ANSWERS)


# --- for ray.data.llm, which works on rows ---


def vllm_request(row: dict[str, Any], prompt: str, max_new_tokens: int) -> dict[str, Any]:
    """Row of DECODED -> what the engine reads; added to the row."""
    failed = row["error"] is not None
    return {
        "prompt": prompt,
        "multimodal_data": {} if failed else {"image": to_image(row["width"], row["height"], row["pixels"])},
        "sampling_params": {"temperature": 0.0, "max_tokens": max_new_tokens},
        "pixels": None,  # else each picture would travel twice
        INFERENCE_ERROR: row["error"] or "",
    }


def vllm_answer(row: dict[str, Any]) -> dict[str, Any]:
    """Answer of the engine to a decoded image -> row of ANSWERS."""
    # Its own clock, if it keeps one: this line runs when the whole batch is done.
    began = (row.get("metrics") or {}).get("arrival_time") or time.time() - row["time_taken_llm"]
    return {
        "content_key": row["content_key"], "text": row["generated_text"], "error": None, "transient": False,
        "decode_sec": row["decode_sec"], "started": float(began), "finished": float(began + row["time_taken_llm"]),
    }  # fmt: skip


def tidy_answer(row: dict[str, Any]) -> dict[str, Any]:
    """Error rows come past `vllm_answer`, with all columns of the engine: keep those of ANSWERS."""
    tidy = {name: row.get(name) for name in ANSWERS.names}
    if (failed := row.get(INFERENCE_ERROR)) and not tidy["error"]:
        tidy["error"] = f"engine: {' '.join(str(failed).split())[:300]}"
    return tidy
