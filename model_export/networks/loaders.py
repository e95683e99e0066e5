"""Families of backbones: building a network, finding its released weights, and reading a weights file.

open_clip and timm take seconds to import, so they are imported only where they are used.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import safetensors.torch
import torch
from efficientnet_lite_pytorch import EfficientNet
from huggingface_hub import constants as hub
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from model_export.errors import SourceError

_HUB_TIMEOUT_S = 5.0
_HUB_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
_NAMED = 3  # names per kind of fault in an error message


@dataclass(frozen=True)
class Family:
    """Networks of one library: normalised float (N, 3, H, W) -> descriptor (N, D)."""

    build: Callable[[str, int], nn.Module]  # (architecture, input_px) -> network with random weights
    find: Callable[[str, str], Path]  # (architecture, weights) -> local file, downloaded if needed
    adapt: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]  # (network, file) -> parameters


def load_weights(network: nn.Module, family: Family, file: Path) -> None:
    """Load a file that must contain exactly the network's parameters. Raises SourceError."""
    state = family.adapt(network, read_state(file))
    expected = network.state_dict()
    faults = format_faults(
        {
            "missing": [name for name in expected if name not in state],
            "unknown": [name for name in state if name not in expected],
            "wrong shape": [
                f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
                for name in expected
                if name in state and state[name].shape != expected[name].shape
            ],
        }
    )
    if faults:
        raise SourceError(f"{file} does not fit the network: {faults}")
    network.load_state_dict(state)


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a state dict of torch or safetensors without executing code. Raises SourceError."""
    if not file.is_file():
        raise SourceError(f"no weights file at {file}")
    # On invalid bytes both readers raise exceptions of many types, all with the same meaning.
    try:
        if file.suffix == ".safetensors":
            state = safetensors.torch.load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SourceError(f"{file} is damaged, or not a state dict of torch or safetensors") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise SourceError(f"{file} is not a state dict: it must contain only named tensors")
    return dict(state)


def format_faults(faults: Mapping[str, list[str]]) -> str:
    """Format each kind of fault with its first names; return an empty string if there are no faults."""
    return "; ".join(f"{fault}: {_first(names)}" for fault, names in faults.items() if names)


def _first(names: list[str]) -> str:
    more = len(names) - _NAMED
    readable = [name if name.isprintable() else repr(name) for name in names[:_NAMED]]
    return ", ".join(readable) + (f" and {more} more" if more > 0 else "")


def hub_file(repo: str, names: Iterable[str]) -> Path:
    """Return the first of these files in a hub repository, from the cache or downloaded. Raises SourceError.

    A single request checks that the hub is reachable, because its client would retry for half a minute.
    """
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repo, name, cache_dir=hub.HF_HUB_CACHE)
        if isinstance(cached, str):
            return Path(cached)
    # The type of the error depends on the HTTP library of the hub's client, which has changed before.
    try:
        huggingface_hub.get_session().head(hub.ENDPOINT, timeout=_HUB_TIMEOUT_S)
        for name in names:
            try:
                return Path(huggingface_hub.hf_hub_download(repo, name, endpoint=hub.ENDPOINT))
            except EntryNotFoundError:
                continue
    except Exception as error:
        raise SourceError(
            f"the weights of {repo} are not on this machine and cannot be downloaded: {error}; "
            "pass a local weights file instead"
        ) from error
    raise SourceError(f"{repo} has none of the files {', '.join(names)}")


def hub_weights(name: str) -> Path:
    """Return the weights of OWNER/NAME, or the file OWNER/NAME/FILE. Raises SourceError."""
    owner, _, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    if not owner or not repo:
        raise SourceError(f"hf-hub:{name}: a hub repository is written hf-hub:OWNER/NAME")
    return hub_file(f"{owner}/{repo}", (file,) if file else _HUB_FILES)


class _LiteDescriptor(nn.Module):
    """EfficientNet without its classifier."""

    def __init__(self, network: EfficientNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.extract_features(images)  # (N, 1280, h, w)
        return features.mean(dim=(2, 3))


def _build_lite(architecture: str, _input_px: int) -> nn.Module:
    try:
        return _LiteDescriptor(EfficientNet.from_name(architecture))
    except ValueError as error:  # lists the valid names
        raise SourceError(f"unknown architecture {architecture}: {error}") from error


def _find_in_package(_architecture: str, weights: str) -> Path:
    package, _, file = weights.partition("/")
    if not file:
        raise SourceError(f"no weights file at {weights}")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SourceError(f"the package {package} with the weights {file} is not installed")
    return Path(spec.origin).parent / file


def _adapt_lite(_network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"network.{name}": tensor for name, tensor in state.items()}


def _build_open_clip(architecture: str, _input_px: int) -> nn.Module:
    import open_clip
    from open_clip.model import _build_vision_tower  # the public function also builds the text tower

    config = open_clip.get_model_config(architecture)
    if config is None:
        raise SourceError(f"open_clip has no architecture {architecture}")
    tower: nn.Module = _build_vision_tower(
        config["embed_dim"], config["vision_cfg"], quick_gelu=config.get("quick_gelu", False)
    )
    # The paper's descriptor is the input of the projection to the space shared with text.
    if isinstance(tower, open_clip.transformer.VisionTransformer):
        tower.proj = None
    elif isinstance(tower, open_clip.timm_model.TimmModel):
        tower.head = nn.Identity()
    return tower


def _find_open_clip(architecture: str, weights: str) -> Path:
    import open_clip
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    hub_name = open_clip.get_pretrained_cfg(architecture, weights).get("hf_hub")
    if hub_name is None:
        raise _unknown_weights(
            "open_clip", architecture, weights, open_clip.list_pretrained_tags_by_model(architecture)
        )
    repo, _, file = hub_name.rpartition("/")
    return hub_file(repo, (file,) if file else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME))


def _adapt_open_clip(_network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    tower = {name.removeprefix("visual."): state[name] for name in state if name.startswith("visual.")}
    parameters = tower or state  # a complete CLIP also has a text tower
    return {name: parameters[name] for name in parameters if name != "proj" and not name.startswith("head.")}


def _unknown_weights(library: str, architecture: str, weights: str, tags: list[str]) -> SourceError:
    available = ", ".join(tags) or "none"
    return SourceError(f"{library} has no weights {weights!r} of {architecture}; it has: {available}")


def _build_timm(architecture: str, input_px: int) -> nn.Module:
    import timm

    if not timm.is_model(architecture):
        raise SourceError(f"timm has no architecture {architecture}")
    # Not every network accepts img_size, so it is passed only if it differs from the default.
    default_px = timm.get_pretrained_cfg(architecture).input_size[-1]
    size = {} if input_px == default_px else {"img_size": input_px}
    network: nn.Module = timm.create_model(architecture, num_classes=0, **size)
    return network


def _find_timm(architecture: str, weights: str) -> Path:
    import timm

    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if weights not in tags:
        raise _unknown_weights("timm", architecture, weights, tags)
    config = timm.get_pretrained_cfg(f"{architecture}.{weights}")
    return hub_file(config.hf_hub_id, ("model.safetensors",))


def _adapt_timm(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    import timm

    unused = (f"{network.pretrained_cfg['classifier']}.", "mask_token")  # type: ignore[index]
    parameters = {name: tensor for name, tensor in state.items() if not name.startswith(unused)}
    positions = parameters.get("pos_embed")  # (1, tokens, D)
    if isinstance(network, timm.models.VisionTransformer) and positions is not None:
        parameters["pos_embed"] = timm.layers.resample_abs_pos_embed(
            positions, list(network.patch_embed.grid_size), num_prefix_tokens=network.num_prefix_tokens
        )
    return parameters


FAMILIES: Mapping[str, Family] = {
    "efficientnet-lite": Family(_build_lite, _find_in_package, _adapt_lite),
    "open_clip": Family(_build_open_clip, _find_open_clip, _adapt_open_clip),
    "timm": Family(_build_timm, _find_timm, _adapt_timm),
}
