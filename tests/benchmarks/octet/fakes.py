"""Tiny packages, resource files and command-line tools."""

import io
import struct
import sys
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from benchmarks.datasets.octet.fetch import sha256_of
from benchmarks.datasets.octet.sources import Source


def write_tar(path: Path, members: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
        for name, target in (links or {}).items():
            header = tarfile.TarInfo(name)
            header.type, header.linkname = tarfile.SYMTYPE, target
            tar.addfile(header)
    return path


def npm_source(name: str, package: Path, *, sha256: str | None = None) -> Source:
    return Source(
        "npm",
        name,
        "1.0.0",
        sha256=sha256 or sha256_of(package),
        size_bytes=package.stat().st_size,
        licence="MIT",
        wanted=r"package/.+",
    )


def debian_source(name: str, package: Path) -> Source:
    return Source(
        "debian",
        name,
        "1:2.0-1",
        sha256=sha256_of(package),
        size_bytes=package.stat().st_size,
        licence="GPL-2",
        wanted=r"usr/.+",
    )


def write_tool(folder: Path, name: str, body: str) -> None:
    """Write an executable that runs `body`, Python with sys imported, and logs its calls to calls.txt."""
    log = f"import sys; open({str(folder / 'calls.txt')!r}, 'a').write({name!r} + '\\n')\n"
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{log}{body}")
    path.chmod(0o755)


def calls(folder: Path) -> list[str]:
    path = folder / "calls.txt"
    return path.read_text().split() if path.exists() else []


Tree = Mapping[str, "bytes | Tree"]


def make_rcc(tree: Tree, *, version: int = 3, flags: int = 0) -> bytes:
    """Build a resource file of nested folders; `flags` is set on every file, 1 means compressed."""
    rows: list[bytes] = []
    names, data = bytearray(), bytearray()
    nodes: list[tuple[str, bytes | Tree]] = [("", tree)]
    position = 0
    while position < len(nodes):  # breadth first: the children of a folder are adjacent
        name, node = nodes[position]
        position += 1
        name_offset = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(node, bytes):
            row = struct.pack(">IHHHI", name_offset, flags, 0, 0, len(data))
            content = struct.pack(">I", len(node)) + zlib.compress(node) if flags & 1 else node
            data += struct.pack(">I", len(content)) + content
        else:
            row = struct.pack(">IHII", name_offset, 2, len(node), len(nodes))
            nodes += node.items()
        rows.append(row + (b"" if version == 1 else bytes(8)))
    header_bytes = 24 if version >= 3 else 20
    offsets = header_bytes + len(data) + len(names), header_bytes, header_bytes + len(data)
    header = b"qres" + struct.pack(">IIII", version, *offsets)
    return header.ljust(header_bytes, b"\0") + data + names + b"".join(rows)
