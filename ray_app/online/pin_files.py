"""The files of a pin store: made once per machine, checked, memory-mapped by all.

    <local_cache_dir>/<release id>-<kind>-v<FORMAT_VERSION>[-shard<i>of<n>]/
        vectors.npy     (num_pins, dim) float16 or int8, in the order of the release (by pin_id)
        scales.npy      int8 only: (num_pins,) float32, what a pin's numbers are multiplied by
        pin_ids.arrow   the ids, one Arrow array
        hashes.npy      (num_pins,) uint64, 64-bit hashes of the ids, sorted
        rows.npy        (num_pins,) uint32, the row of each of these hashes
        meta.json       sizes, hashes, and what it was made from; written last: without it the folder is no store

The folder is made from the release by the first replica that needs it, beside its final place, and renamed: others wait,
or find it whole. A folder that is torn, or of something else, is made again; files that are mapped are never written to.
"""

import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from ray_app.base.cache_folder import found_or_made, put_in_place, remove
from ray_app.base.errors import UserError, one_line
from ray_app.base.hashing import Keys
from ray_app.base.storage import Storage
from ray_app.online.local_files import check_files, write_meta
from ray_app.tables.release import Release, read_parts

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # raised when the same release gives other files
Kind = Literal["float16", "int8"]
Shard = tuple[int, int]  # number of the shard, number of shards
HashIds = Callable[[Sequence[str]], Keys]

_CHUNK_ROWS = 16_384  # 25 MB of 384 float32: what is converted at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreKey:
    """Identity of a folder's content, stored in meta.json, so that files built from other inputs are never used."""

    format_version: int
    release: str
    parts: dict[str, str]  # the release's files -> sha256
    student_id: str
    dim: int
    kind: Kind
    shard: list[int] | None
    hash_probe: int  # hash of a fixed text: tells hash functions apart

    @classmethod
    def of(cls, release: Release, kind: Kind, shard: Shard | None, hash_ids: HashIds) -> "StoreKey":
        """The key of a release's copy."""
        return cls(
            format_version=FORMAT_VERSION, release=release.id, parts=release.files, student_id=release.student_id,
            dim=release.dim, kind=kind, shard=list(shard) if shard else None, hash_probe=int(hash_ids(["probe"])[0]),
        )  # fmt: skip

    @property
    def folder_name(self) -> str:
        """Name of its folder in the local cache."""
        suffix = f"-shard{self.shard[0]}of{self.shard[1]}" if self.shard else ""
        return f"{self.release}-{self.kind}-v{self.format_version}{suffix}"

    def arrays(self, num_pins: int) -> dict[str, tuple[DTypeLike, tuple[int, ...]]]:
        """File -> type and shape of each array."""
        arrays: dict[str, tuple[DTypeLike, tuple[int, ...]]] = {
            "vectors.npy": (self.kind, (num_pins, self.dim)),
            "hashes.npy": (np.uint64, (num_pins,)),
            "rows.npy": (np.uint32, (num_pins,)),
        }
        return arrays | ({"scales.npy": (np.float32, (num_pins,))} if self.kind == "int8" else {})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MappedFiles:
    """A checked folder."""

    num_pins: int
    vectors: NDArray[Any]
    scales: NDArray[np.float32] | None
    pin_ids: pa.Array  # large_binary
    hashes: Keys
    rows: NDArray[np.uint32]


def open_files(
    store: Storage, release: Release, folder: Path, key: StoreKey, hash_ids: HashIds, verify: bool
) -> MappedFiles:
    """Map a folder, after making it if it is not there or not whole. Arguments and errors: see `PinStore.open`."""
    find = partial(map_files, folder, key, verify)
    try:
        found = found_or_made(folder, find, partial(_make, store, release, folder, key, hash_ids, verify))
    except OSError as error:
        raise UserError(
            f"cannot keep the pins' vectors in {folder} ({one_line(error)}); "
            "set serve.local_cache_dir to a folder of this machine with room for them"
        ) from None
    if found is None:
        raise UserError(f"{folder} is damaged again as soon as it is written; is the disk whole?")
    return found


def map_files(folder: Path, key: StoreKey, verify: bool) -> MappedFiles | None:
    """The files of a folder; None if there is none, or one of something else, or not whole."""
    if not folder.exists():
        return None
    try:
        raw = json.loads((folder / "meta.json").read_bytes())
        if {name: raw.get(name) for name in asdict(key)} != asdict(key):
            raise ValueError("it was made from something else")
        num_pins, arrays = raw["num_pins"], key.arrays(raw["num_pins"])
        if set(raw["files"]) != {*arrays, "pin_ids.arrow"}:
            raise ValueError("its files are others")
        check_files(folder, raw["files"], verify)
        mapped = {name: _map_array(folder / name, *kind) for name, kind in arrays.items()}
        pin_ids = _map_ids(folder / "pin_ids.arrow", num_pins)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as error:  # all damage
        logger.warning("%s is not used and will be rebuilt: %s", folder, one_line(error))
        return None
    return MappedFiles(
        num_pins=num_pins, vectors=mapped["vectors.npy"], scales=mapped.get("scales.npy"), pin_ids=pin_ids,
        hashes=mapped["hashes.npy"], rows=mapped["rows.npy"],
    )  # fmt: skip


def _make(store: Storage, release: Release, folder: Path, key: StoreKey, hash_ids: HashIds, verify: bool) -> None:
    """Write a folder beside its place and move it there; another's that came first stays."""
    started = time.monotonic()
    with put_in_place(folder) as temp:
        num_pins = _write_files(store, release, temp, key, hash_ids)
        write_meta(temp, asdict(key) | {"num_pins": num_pins})
        if folder.exists() and map_files(folder, key, verify) is None:
            remove(folder)
    logger.info("%s: %d pins mapped after %.1f s", folder, num_pins, time.monotonic() - started)


def _write_files(store: Storage, release: Release, temp: Path, key: StoreKey, hash_ids: HashIds) -> int:
    """Write all files but meta.json, one part of the release in memory at a time; returns the number of pins."""
    keys, ids, num_pins = [np.zeros(0, np.uint64)], [], 0
    names: list[str] = [name for name in ("vectors.npy", "scales.npy") if name in key.arrays(0)]
    with ExitStack() as stack:
        files = {name: stack.enter_context((temp / name).open("wb")) for name in names}
        for name, file in files.items():  # the number of pins is known at the end; a header is as long for any
            file.write(_header(*key.arrays(0)[name]))
        for part in read_parts(store, release):
            for batch in part.to_batches(max_chunksize=_CHUNK_ROWS):
                hashes = hash_ids(batch["pin_id"].to_pylist())
                if key.shard is not None:
                    mine = hashes % np.uint64(key.shard[1]) == key.shard[0]
                    batch, hashes = batch.filter(pa.array(mine)), hashes[mine]
                values = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(-1, key.dim)
                for file, array in zip(files.values(), _encode(values, key.kind), strict=True):
                    file.write(array.data)
                keys.append(hashes)
                ids.append(batch["pin_id"].cast(pa.large_binary()))
                num_pins += len(hashes)
        for name, file in files.items():
            file.seek(0)
            file.write(_header(*key.arrays(num_pins)[name]))
    assert num_pins <= np.iinfo(np.uint32).max, "rows.npy holds 32 bits"
    all_keys = np.concatenate(keys)
    order = np.argsort(all_keys, kind="stable")
    for name, array in (("hashes.npy", all_keys[order]), ("rows.npy", order.astype(np.uint32))):
        with (temp / name).open("wb") as out:
            out.write(_header(*key.arrays(num_pins)[name]))
            out.write(array.data)
    column = pa.concat_arrays(ids) if ids else pa.array([], pa.large_binary())
    with pa.ipc.new_file(temp / "pin_ids.arrow", pa.schema([("pin_id", pa.large_binary())])) as writer:
        writer.write_batch(pa.record_batch({"pin_id": column}))
    return num_pins


def _encode(values: NDArray[np.float32], kind: str) -> list[NDArray[Any]]:
    """Vectors (n, dim) as they are stored, and for int8 their scales (n,).

    int8 is symmetric: the largest number of a vector becomes 127. The scale is not that number / 127, but what gives the
    vector its length back.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "float16":
            arrays: list[NDArray[Any]] = [values.astype(np.float16)]
        else:
            peak = np.abs(values).max(axis=1, keepdims=True)
            whole = np.rint(values / np.where(peak > 0, peak, 1) * np.float32(127)).astype(np.int8)
            length = np.linalg.norm(whole.astype(np.float32), axis=1)
            scales = np.linalg.norm(values, axis=1) / np.where(length > 0, length, 1)
            arrays = [whole, scales.astype(np.float32)]
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError(
            f"the release has numbers too large for {kind}; a student's vectors have length 1: run embed again"
        )
    return arrays


def _header(dtype: DTypeLike, shape: tuple[int, ...]) -> bytes:
    """First bytes of a .npy file. Equally long for any number of rows: numpy leaves room for them."""
    out = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


def _map_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    header = _header(dtype, shape)
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            raise ValueError(f"{path.name} is not {np.dtype(dtype)} of shape {shape}")
    if 0 in shape:  # nothing to map
        return np.zeros(shape, dtype)
    return np.asarray(np.load(path, mmap_mode="r"))  # a plain array over the mapping: indexing it costs less


def _map_ids(path: Path, num_pins: int) -> pa.Array:
    with pa.memory_map(str(path)) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
    ids = table["pin_id"].chunk(0)  # the only one
    ids.validate()
    if ids.type != pa.large_binary() or len(ids) != num_pins or ids.null_count:
        raise ValueError(f"{path.name} does not hold {num_pins} ids")
    return ids
