"""Invalid checkpoints are refused in one sentence that names the file and the parameter."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import msgpack
import numpy as np
import pytest

from model_export.checkpoints.flax import import_checkpoint
from model_export.errors import SourceError
from tests.support.flax_models import (
    SMALL,
    SMALL_PX,
    Params,
    Vit,
    clip_tree,
    complete_tree,
    dense,
    random_params,
    save_checkpoint,
)


@pytest.fixture
def tree() -> Params:
    """A small CLIP checkpoint, for tests to damage."""
    return clip_tree()


def refusal(file: Path) -> str:
    with pytest.raises(SourceError) as raised:
        import_checkpoint(file)
    message = str(raised.value)
    assert str(file) in message
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is empty"),
        (b"\x80", "no `params`"),  # an empty map
        (b"\x07", "no `params`"),
        (b"hello, world", "truncated, damaged"),
        (b"\x93NUMPY\x01\x00", "truncated, damaged"),
        (b"PK\x03\x04" + bytes(100), "truncated, damaged"),
        (msgpack.packb({"params": {"conv1": msgpack.ExtType(9, b"x")}}), "truncated, damaged"),
        (msgpack.packb({"params": {"conv1": msgpack.ExtType(1, b"x")}}), "truncated, damaged"),
        (msgpack.packb({"params": {"conv1": {"__msgpack_chunked_array__": True}}}), "truncated, damaged"),
        (msgpack.packb({"params": {"conv1": 3}}), "conv1 is not an array of floating point numbers"),
        (msgpack.packb({"params": [1, 2]}), "no `params`"),
        (flax.serialization.msgpack_serialize({"model": {"x": np.ones(3)}}), "no `params`"),
        (
            flax.serialization.msgpack_serialize({"params": {"x": np.arange(3)}}),
            "x is not an array of floating",
        ),
    ],
)
def test_files_of_other_formats(data: bytes, text: str, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    file.write_bytes(data)
    assert text in refusal(file)


def test_missing_file(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "nowhere")
    assert "cannot be read: Is a directory" in refusal(tmp_path)


def test_truncated_anywhere(tree: Params, tmp_path: Path) -> None:
    complete = save_checkpoint(tree, tmp_path / "checkpoint").read_bytes()
    for length in np.linspace(1, len(complete) - 1, 23).astype(int):
        (tmp_path / "cut").write_bytes(complete[:length])
        assert "truncated, damaged" in refusal(tmp_path / "cut")


def test_damaged_anywhere(tree: Params, tmp_path: Path) -> None:
    """Damaged names and types are found. The format has no checksum, so changed weights are not."""
    complete = save_checkpoint(tree, tmp_path / "checkpoint").read_bytes()
    rng = np.random.default_rng(0)
    starts = [match.start() for match in re.finditer(rb"kernel|bias|scale|float32|resblocks", complete)]
    for start in rng.choice(starts, 40, replace=False):
        damaged = bytearray(complete)
        damaged[start + rng.integers(4)] ^= int(rng.integers(1, 256))
        (tmp_path / "damaged").write_bytes(damaged)
        refusal(tmp_path / "damaged")


def without(*path: str) -> Callable[[Params], None]:
    def damage(tree: Params) -> None:
        for step in path[:-1]:
            tree = tree[step]
        del tree[path[-1]]

    return damage


def put(value: Any, *path: str) -> Callable[[Params], None]:
    def damage(tree: Params) -> None:
        for step in path[:-1]:
            tree = tree[step]
        tree[path[-1]] = value

    return damage


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (without("ln_post", "bias"), "missing: ln_post/bias"),
        (without("projection"), "missing: projection/kernel, projection/bias"),
        (without("transformer", "resblocks.0"), "missing: transformer/resblocks.0/ln_1/scale"),
        (without("class_embedding"), "no class_embedding (CLIP ViT) nor cls (ImageNet ViT)"),
        (put(np.ones(3), "ln_4"), "unknown: ln_4"),
        (put({"kernel": np.ones((4, 4))}, "proj"), "unknown: proj/kernel"),
        (
            put(dense(RNG, 64, 256), "teacher_projection_domain_0"),
            "unknown: teacher_projection_domain_0/bias",
        ),
        (put(dense(RNG, 64, 9), "output_projection_0"), "unknown: output_projection_0/bias"),
        (put(np.ones(65), "ln_pre", "scale"), "wrong shape: ln_pre/scale (65,) instead of (64)"),
        (
            put(np.ones((1, 17, 64)), "positional_embedding"),
            "positional_embedding (1, 17, 64) instead of (T, 64)",
        ),
        (put(np.ones((16, 64)), "positional_embedding"), "16 positions are not a square"),
        (put(np.ones((1, 64)), "positional_embedding"), "1 positions are not a square"),
        (put(np.ones((64, 65)), "projection", "kernel"), "projection/bias (64,) instead of (65)"),
        (put(np.full(64, np.nan), "ln_pre", "scale"), "not finite: ln_pre/scale"),
    ],
)
def test_invalid_trees(damage: Callable[[Params], None], text: str, tree: Params, tmp_path: Path) -> None:
    import_checkpoint(save_checkpoint(tree, tmp_path / "valid"))
    damage(tree)
    assert text in refusal(save_checkpoint(tree, tmp_path / "damaged"))


def test_heads_that_do_not_add_up_to_the_width(tree: Params, tmp_path: Path) -> None:
    for block in tree["transformer"].values():
        for part in ("query", "key", "value"):
            block["attn"][part] = {"kernel": np.ones((64, 4, 8)), "bias": np.ones((4, 8))}
        block["attn"]["out"]["kernel"] = np.ones((4, 8, 64))
    assert "4 heads of 8 are not the width 64" in refusal(save_checkpoint(tree, tmp_path / "checkpoint"))


def test_student_with_several_layers_is_refused(tmp_path: Path) -> None:
    tree = complete_tree(random_params(Vit(**SMALL), SMALL_PX, seed=0), 64, "UDON")
    student = tree["universal_student_projection_domain_0"]
    student["Dense_1"] = student["Dense_0"]
    message = refusal(save_checkpoint(tree, tmp_path / "checkpoint"))
    assert "unknown: universal_student_projection_domain_0/Dense_1/bias" in message


def test_only_the_first_faults_are_named(tree: Params, tmp_path: Path) -> None:
    del tree["transformer"]["resblocks.1"]["attn"], tree["transformer"]["resblocks.1"]["mlp"]
    message = refusal(save_checkpoint(tree, tmp_path / "checkpoint"))
    assert re.search(r"missing: transformer/resblocks\.1/attn/query/kernel, .* and 9 more$", message)
