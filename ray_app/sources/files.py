"""Source files on any pyarrow filesystem: finding them, opening them, telling whether they changed.

Every problem with a whole file is a `UserError` that names the config key and the file; rows are another matter.
"""

import fnmatch
import gzip
import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, cast

import pyarrow as pa
import pyarrow.fs as pafs

from ray_app.base.errors import UserError, one_line
from ray_app.base.filesystem import open_uri

HASHED_WHOLE_BYTES = 64_000_000
"""Larger files are identified by size and time: to read a terabyte to learn that nothing changed costs too much."""

MAX_LINE_BYTES = 16_000_000  # guessed: more than any honest row, less than what hurts
MAX_DOCUMENT_BYTES = 4_000_000_000  # of a file that must be decoded whole; a zip can claim to be anything
MAX_RATIO = 300  # guessed: text packs 5 to 30 times, zeros a thousand times
FREE_BYTES = 256_000_000  # guessed: whatever unpacks to less harms nobody

_ENCRYPTED = 0x1  # flag of a zip's member
_OTHER_METHODS = {9: "deflate64", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma", 93: "zstd"}
# zipfile unpacks what it read of the others in one go, however much it is.
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file of a source; picklable, opens on any machine that reaches its filesystem."""

    uri: str  # as in the config: decides the filesystem
    path: str  # inside that filesystem
    name: str  # below the source's folder: what quarantine rows carry
    key: str  # config key that led here, for messages
    size_bytes: int
    mtime_ns: int | None

    @property
    def basename(self) -> str:
        """Last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def section(self) -> str:
        """Config key of the source that the file belongs to."""
        return self.key.removesuffix(".path")

    @property
    def most_bytes(self) -> int:
        """Maximum decompressed size in bytes; more is rejected as a decompression bomb."""
        return max(FREE_BYTES, MAX_RATIO * self.size_bytes)

    def refuse_bomb(self) -> NoReturn:
        """Say that the content is larger than `most_bytes`."""
        raise UserError(
            f"{self.key}: {self.path} unpacks to more than {MAX_RATIO} times its size; if that is what it should do, unpack it "
            "yourself and name what was in it"
        )

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file's bytes, seekable.

        Raises:
            UserError: it cannot be read (any longer).
        """
        with _explained(self), open_uri(self.uri)[0].open_input_file(self.path) as raw:
            yield cast(BinaryIO, raw)

    @contextmanager
    def open_plain(self) -> Iterator[BinaryIO]:
        """The content behind `.gz` or `.zip` (whose only file it is), or the bytes as they are.

        Raises:
            UserError: it cannot be read, is not the archive that its name says, is a zip that is not deflated, or is a bomb:
                it unpacks to more than `most_bytes`.
        """
        with self.open() as raw:
            if self.path.endswith(".gz"):
                yield cast(BinaryIO, io.BufferedReader(_Unpacked(self, gzip.GzipFile(fileobj=raw)), 1 << 16))
            elif self.path.endswith(".zip"):
                with zipfile.ZipFile(raw) as archive:
                    members = [info for info in archive.infolist() if not info.filename.endswith("/")]
                    if len(members) != 1:
                        raise UserError(f"{self.key}: {self.path} must hold exactly one file, it holds {len(members)}")
                    if members[0].flag_bits & _ENCRYPTED:
                        raise UserError(f"{self.key}: {self.path} is encrypted; unpack it, and name what was in it")
                    if members[0].compress_type not in _PACKED:
                        number = members[0].compress_type
                        name = _OTHER_METHODS.get(number, f"method {number}")
                        raise UserError(
                            f"{self.key}: {self.path} is packed with {name}; pack it with deflate, zip's default"
                        )
                    with archive.open(members[0]) as member:
                        yield cast(BinaryIO, io.BufferedReader(_Unpacked(self, member), 1 << 16))
            else:
                yield raw

    def lines(self, max_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
        """Numbered lines (0-based, blank ones left out) of the plain content, without their ends.

        Of a longer line the first `max_bytes` + 1 bytes are given, which tells it apart, and the rest is skipped: it fills no
        memory, and is one line still.
        """
        most = max_bytes + len(b"\r\n")
        with self.open_plain() as plain:
            reader = io.BufferedReader(cast("io.RawIOBase", plain), 1 << 20)
            number = 0
            while line := reader.readline(most):
                rest = line
                while len(rest) == most and not rest.endswith(b"\n"):
                    rest = reader.readline(most)
                line = line.removesuffix(b"\n").removesuffix(b"\r")[: max_bytes + 1]
                if line and not line.isspace():
                    yield number, line
                number += 1

    def text_lines(self, plain: BinaryIO) -> Iterator[str]:
        """Lines of `open_plain`, with their ends, for `csv`; bytes that are not UTF-8 become lone surrogates.

        A longer line is cut at `MAX_LINE_BYTES` characters, and the rest is skipped; the piece has no line end.
        """
        text = io.TextIOWrapper(plain, encoding="utf-8-sig", errors="surrogateescape", newline="")
        while line := text.readline(MAX_LINE_BYTES):
            rest = line
            while len(rest) == MAX_LINE_BYTES and not rest.endswith(("\n", "\r")):
                rest = text.readline(MAX_LINE_BYTES)
            yield line

    def read_document(self) -> bytes:
        """The whole plain content.

        Raises:
            UserError: it is larger than `MAX_DOCUMENT_BYTES`.
        """
        with self.open_plain() as plain:
            data = plain.read(MAX_DOCUMENT_BYTES + 1)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise UserError(f"{self.key}: {self.path} unpacks to more than {MAX_DOCUMENT_BYTES:,} bytes; split it")
        return data

    def content_id(self) -> str:
        """Identity of the content: a hash of small files, size and time of large ones."""
        if self.size_bytes > HASHED_WHOLE_BYTES:
            return f"{self.size_bytes}@{self.mtime_ns}"
        with self.open() as raw:
            return hashlib.sha256(raw.read()).hexdigest()


class _Unpacked(io.RawIOBase):
    """The content of a packed file, as long as it is no bomb."""

    def __init__(self, file: SourceFile, inner: Any) -> None:
        self._file, self._inner = file, inner

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._inner.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def readinto(self, buffer: Any) -> int:
        data = self._inner.read1(len(buffer))
        buffer[: len(data)] = data
        if self._inner.tell() > self._file.most_bytes:
            self._file.refuse_bomb()
        return len(data)


def find_files(uri: str, key: str) -> list[SourceFile]:
    """The files that a config path means, sorted by name: one file, a folder (all below it), or a glob.

    Raises:
        UserError: nothing is there, or the place cannot be reached.
    """
    literal, pattern = uri, ""
    try:
        fs, root = open_uri(literal)
        info = fs.get_file_info(root)
        if info.type == pafs.FileType.NotFound and ("*" in uri or "[" in uri):
            literal, pattern = _split_glob(uri)
            fs, root = open_uri(literal)
            info = fs.get_file_info(root)
        if info.type == pafs.FileType.NotFound:
            raise UserError(f"{key}: {uri} does not exist; set {key} to an existing file or folder")
        if info.type == pafs.FileType.File:
            infos, root = [info], root.rsplit("/", 1)[0]
        else:
            infos = fs.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise UserError(f"{key}: cannot look up {uri}: {one_line(error)[:200]}") from None
    files = [
        SourceFile(
            uri=literal, path=f.path, name=f.path[len(root) + 1 :], key=key, size_bytes=f.size, mtime_ns=f.mtime_ns
        )
        for f in infos
        if f.type == pafs.FileType.File
    ]
    # Names that start with a dot or an underscore are other programs' notes (_SUCCESS, .tmp-...).
    files = [f for f in files if not f.basename.startswith((".", "_"))]
    if pattern:
        files = [f for f in files if fnmatch.fnmatchcase(f.name, pattern)]
    if not files:
        raise UserError(f"{key}: there is no file in {uri}; set {key} to where the data is")
    return sorted(files, key=lambda f: f.name)


def _split_glob(uri: str) -> tuple[str, str]:
    """Place without wildcards, and the pattern below it."""
    path, question, options = uri.partition("?") if "://" in uri else (uri, "", "")
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if "*" in part or "[" in part), len(parts))
    folder = "/".join(parts[:first]) or ("/" if path.startswith("/") else ".")
    return folder + question + options, "/".join(parts[first:])


# What damaged archives and Parquet files have been seen to raise. Bytes of rows that are not
# UTF-8 never raise UnicodeDecodeError: what does is the name of a column, or of a zip's member.
_CORRUPT = (
    zipfile.BadZipFile, EOFError, zlib.error, struct.error, NotImplementedError, pa.ArrowInvalid, pa.ArrowIndexError,
    UnicodeDecodeError,
)  # fmt: skip


@contextmanager
def _explained(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{file.key}: {file.path} does not exist; set {file.key} to where the data is") from None
    except _CORRUPT as error:
        raise UserError(_corrupt(file, error)) from None
    except OSError as error:
        if error.errno is None:  # what pyarrow and gzip raise for a damaged page, not the operating system
            raise UserError(_corrupt(file, error)) from None
        raise UserError(f"{file.key}: {file.path} cannot be read ({one_line(error)[:200]})") from None


def _corrupt(file: SourceFile, error: BaseException) -> str:
    return f"{file.key}: {file.path} is corrupt ({one_line(error)[:200]}); fetch it again or remove it"
