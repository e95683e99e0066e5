"""Released weights come from the hub's cache or the hub; without a hub, loading fails at once."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants as hub

from model_export.errors import SourceError
from model_export.networks.backbones import (
    BACKBONES,
    Backbone,
    load_backbone,
    weights_path,
    weights_sha256,
    weights_source,
)

TINY = replace(BACKBONES["imagenet-vit-s16"], architecture="test_vit", weights="r160_in1k", descriptor_dim=64)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache without any files."""
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def broken_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server that closes every connection; the list counts them."""
    calls: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")

        def close_connections() -> None:
            while True:
                try:
                    connection, address = server.accept()
                except OSError:  # the test is over
                    return
                calls.append(address[0])  # before the client sees the closed connection
                connection.close()

        thread = threading.Thread(target=close_connections)
        thread.start()
        yield calls
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    ("row", "repo"),
    [
        (BACKBONES["clip-vit-b16"], "timm/vit_base_patch16_clip_224.openai"),
        (BACKBONES["clip-vit-h14-laion2b"], "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
        (BACKBONES["dinov2-vit-b14"], "timm/vit_base_patch14_dinov2.lvd142m"),
    ],
    ids=lambda value: value.name if isinstance(value, Backbone) else "",
)
def test_without_a_hub_there_is_one_request_and_one_error(
    row: Backbone, repo: str, broken_hub: list[str]
) -> None:
    for number, function in enumerate((load_backbone, weights_sha256), start=1):
        with pytest.raises(SourceError, match=f"weights of {repo} are not") as refusal:
            function(row)
        assert "\n" not in str(refusal.value)
        assert len(broken_hub) == number  # no retries, which would take half a minute


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    ("weights", "repo"),
    [
        ("hf-hub:laion/some-clip", "laion/some-clip"),
        ("hf-hub:laion/some-clip/weights.bin", "laion/some-clip"),
        ("metaclip_400m", "timm/vit_base_patch16_clip_224.metaclip_400m"),
    ],
)
def test_weights_of_a_strategy_may_be_a_hub_name_or_a_tag(
    weights: str, repo: str, broken_hub: list[str]
) -> None:
    with pytest.raises(SourceError, match=f"weights of {repo} are not"):
        load_backbone(BACKBONES["clip-vit-b16"], weights)
    assert len(broken_hub) == 1
    assert weights in weights_source(BACKBONES["clip-vit-b16"], weights)


CLIP, LITE = BACKBONES["clip-vit-b32"], BACKBONES["efficientnet-lite0"]


@pytest.mark.parametrize(
    ("row", "weights", "text"),
    [
        (CLIP, "hf-hub:laion", "hf-hub:OWNER/NAME"),
        (CLIP, "nope", "open_clip has no weights 'nope' of ViT-B-32-quickgelu; it has: openai, "),
        (replace(CLIP, weights="nope"), "pretrained", "open_clip has no weights 'nope'"),
        (replace(CLIP, architecture="ViT-Z"), "pretrained", "of ViT-Z; it has: none"),
        (replace(CLIP, architecture="ViT-Z"), "random", "open_clip has no architecture ViT-Z"),
        (
            replace(TINY, weights="nope"),
            "pretrained",
            "timm has no weights 'nope' of test_vit; it has: r160_in1k",
        ),
        (replace(TINY, architecture="vit_z"), "pretrained", "of vit_z; it has: none"),
        (replace(TINY, architecture="vit_z"), "random", "timm has no architecture vit_z"),
        (replace(LITE, architecture="lite9"), "random", "unknown architecture lite9"),
        (LITE, "nope", "no weights file at nope"),
    ],
)
def test_unknown_weights_and_architectures_are_one_sentence(row: Backbone, weights: str, text: str) -> None:
    with pytest.raises(SourceError, match=text) as refusal:
        load_backbone(row, weights)
    assert "\n" not in str(refusal.value)


@pytest.mark.usefixtures("broken_hub")
def test_cached_weights_are_used_without_a_hub(empty_cache: Path) -> None:
    expected = load_backbone(TINY, "random:3").state_dict()
    repo = empty_cache / "models--timm--test_vit.r160_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0123abcd")
    file = repo / "snapshots" / "0123abcd" / "model.safetensors"
    file.parent.mkdir(parents=True)
    safetensors.torch.save_file(expected | {"head.weight": torch.ones(1000, 64)}, file)
    assert weights_path(TINY) == file
    loaded = load_backbone(TINY).state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert weights_sha256(TINY) == weights_sha256(TINY, str(file))
