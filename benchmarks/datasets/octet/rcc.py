"""Reader of Qt's binary resource format (`.rcc`), as written by `rcc -binary`.

    header  magic "qres", version, offsets of tree, data and names, (from version 3) overall flags
    tree    one row per node; node 0 is the root folder, the children of a folder are adjacent
    names   UTF-16-BE strings, each after its length
    data    length, then the bytes, or their uncompressed length and the bytes compressed with zlib

All numbers are big-endian. zstd, which Qt also supports, occurs in no file that Octet reads.
"""

import struct
import zlib
from collections.abc import Iterator

from benchmarks.errors import DataError

_MAGIC = b"qres"
_COMPRESSED_ZLIB, _FOLDER, _COMPRESSED_ZSTD = 1, 2, 4


def read_rcc(blob: bytes, *, where: str) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of every file; `where` names the container in errors. Raises DataError."""
    try:
        yield from _Reader(blob).files(node=0, folder="")
    except struct.error as error:
        raise DataError(f"{where}: the resource file is truncated ({error})") from error
    except (zlib.error, ValueError) as error:
        raise DataError(f"{where}: not a readable resource file: {error}") from error


class _Reader:
    """Parsed header of a container. Methods raise `struct.error`, `zlib.error` and ValueError."""

    def __init__(self, blob: bytes) -> None:
        if not blob.startswith(_MAGIC):
            raise ValueError("it does not start with 'qres'")
        self.blob = blob
        version, self.tree, self.data, self.names = struct.unpack_from(">4I", blob, len(_MAGIC))
        if version not in (1, 2, 3):
            raise ValueError(f"unsupported format version {version}")
        # From version 2, each row ends with a modification time.
        self.row_bytes = 14 if version == 1 else 22
        self.seen: set[int] = set()

    def files(self, node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        if node in self.seen:
            raise ValueError(f"the tree visits node {node} twice")
        self.seen.add(node)
        row = self.tree + node * self.row_bytes
        name_offset, flags = struct.unpack_from(">IH", self.blob, row)
        path = folder + (self._name(name_offset) if node else "")
        if flags & _FOLDER:
            count, first = struct.unpack_from(">II", self.blob, row + 6)
            for child in range(first, first + count):
                yield from self.files(child, f"{path}/" if path else "")
        else:
            (data_offset,) = struct.unpack_from(">I", self.blob, row + 10)  # after country and language
            yield path, self._content(data_offset, flags, path)

    def _name(self, offset: int) -> str:
        start = self.names + offset
        (units,) = struct.unpack_from(">H", self.blob, start)
        # A 32-bit hash of the name stands between its length and its text.
        (raw,) = struct.unpack_from(f">{2 * units}s", self.blob, start + 6)
        return bytes(raw).decode("utf-16-be")

    def _content(self, offset: int, flags: int, path: str) -> bytes:
        start = self.data + offset
        (length,) = struct.unpack_from(">I", self.blob, start)
        (raw,) = struct.unpack_from(f">{length}s", self.blob, start + 4)
        if flags & _COMPRESSED_ZSTD:
            raise ValueError(f"{path} is compressed with zstd, which is not supported")
        if not flags & _COMPRESSED_ZLIB:
            return bytes(raw)
        (full_length,) = struct.unpack_from(">I", raw)
        content = zlib.decompress(raw[4:])
        if len(content) != full_length:
            raise ValueError(f"{path} has {len(content)} bytes, expected {full_length}")
        return content
