import pytest

from benchmarks.datasets.octet.rcc import read_rcc
from benchmarks.errors import DataError
from tests.benchmarks.octet.fakes import Tree, make_rcc

TREE: Tree = {"a.png": b"first", "folder": {"ü.webp": b"second" * 100, "deeper": {"c": b""}}}
FILES = {"a.png": b"first", "folder/ü.webp": b"second" * 100, "folder/deeper/c": b""}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("flags", [0, 1])
def test_reads_nested_folders_plain_and_compressed(version: int, flags: int) -> None:
    assert dict(read_rcc(make_rcc(TREE, version=version, flags=flags), where="x")) == FILES


def test_every_truncation_is_an_error_with_the_file_name() -> None:
    blob = make_rcc(TREE, flags=1)
    for n_bytes in range(len(blob) - 8):  # the last 8 bytes are a modification time, which is not read
        with pytest.raises(DataError, match=r"paintings\.rcc"):
            list(read_rcc(blob[:n_bytes], where="paintings.rcc"))


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"PK\3\4", "does not start with 'qres'"),
        (make_rcc(TREE, version=4), "version 4"),
        (make_rcc(TREE, flags=4), "compressed with zstd"),
    ],
)
def test_unsupported_files_are_refused(blob: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_rcc(blob, where="x"))


def test_damaged_compressed_data_is_an_error() -> None:
    blob = bytearray(make_rcc({"a": b"hello" * 50}, flags=1))
    blob[24 + 4 + 4] ^= 0xFF  # after the header, the stored length and the full length
    with pytest.raises(DataError, match="not a readable resource file"):
        list(read_rcc(bytes(blob), where="x"))


def test_a_wrong_length_is_an_error() -> None:
    blob = bytearray(make_rcc({"a": b"hello"}, flags=1))
    blob[24 + 7] += 1
    with pytest.raises(DataError, match="5 bytes, expected 6"):
        list(read_rcc(bytes(blob), where="x"))


def test_a_folder_that_contains_itself_is_an_error() -> None:
    blob = bytearray(make_rcc({"a": {}}))
    row = len(blob) - 22  # of the folder "a": name, flags, number of children, first child
    blob[row + 6 : row + 14] = (1).to_bytes(4, "big") + (1).to_bytes(4, "big")
    with pytest.raises(DataError, match="visits node 1 twice"):
        list(read_rcc(bytes(blob), where="x"))
