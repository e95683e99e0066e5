"""Families of backbones: how each builds its network, finds its released weights and reads a file of them.

open_clip and timm take seconds to import, so they are imported where they are used: who lists models or
exports an EfficientNet does not wait for them.
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
_NAMED = 3  # of each kind of fault, so that an error stays one sentence


@dataclass(frozen=True)
class Family:
    """Networks of one library: normalised float (N, 3, H, W) -> descriptor (N, D)."""

    build: Callable[[str, int], nn.Module]  # (architecture, input_px), any weights
    find: Callable[[str, str], Path]  # (architecture, weights): the released file, here or downloaded
    adapt: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]  # what such a file says of the network


def load_weights(network: nn.Module, family: Family, file: Path) -> None:
    """Every parameter of the network from a file, none left over. Raises SourceError."""
    state = family.adapt(network, read_state(file))
    wanted = network.state_dict()
    faults = in_words(
        {
            "missing": [name for name in wanted if name not in state],
            "unknown": [name for name in state if name not in wanted],
            "of another shape": [
                f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
                for name in wanted
                if name in state and state[name].shape != wanted[name].shape
            ],
        }
    )
    if faults:
        raise SourceError(f"{file} does not fit the network: {faults}")
    network.load_state_dict(state)


def read_state(file: Path) -> dict[str, Tensor]:
    """A state dict of torch or safetensors, never code. Raises SourceError."""
    if not file.is_file():
        raise SourceError(f"there is no file of weights at {file}")
    # Both readers raise nearly anything on broken bytes: whatever comes out says that the file is broken.
    try:
        if file.suffix == ".safetensors":
            state = safetensors.torch.load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SourceError(f"{file} is damaged, or not a state dict of torch or safetensors") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise SourceError(f"{file} is not a state dict: names and tensors, and nothing else")
    return dict(state)


def in_words(faults: Mapping[str, list[str]]) -> str:
    """Each kind of fault with the first of its names; empty where there are none."""
    return "; ".join(f"{fault}: {_first(names)}" for fault, names in faults.items() if names)


def _first(names: list[str]) -> str:
    more = len(names) - _NAMED
    readable = [name if name.isprintable() else repr(name) for name in names[:_NAMED]]  # of damaged files
    return ", ".join(readable) + (f" and {more} more" if more > 0 else "")


def hub_file(repo: str, names: Iterable[str]) -> Path:
    """The first of these files that a hub's repository has, from the cache or downloaded. Raises SourceError.

    One request finds out whether the hub can be reached: its own client would retry for half a minute.
    """
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repo, name, cache_dir=hub.HF_HUB_CACHE)
        if isinstance(cached, str):
            return Path(cached)
    # Which errors come out depends on the client's own client, and that has changed: all of them say no.
    try:
        huggingface_hub.get_session().head(hub.ENDPOINT, timeout=_HUB_TIMEOUT_S)
        for name in names:
            try:
                return Path(huggingface_hub.hf_hub_download(repo, name, endpoint=hub.ENDPOINT))
            except EntryNotFoundError:
                continue
    except Exception as error:
        raise SourceError(
            f"the weights of {repo} are not on this machine and the hub does not give them: {error}; "
            "a local file of them would do"
        ) from error
    raise SourceError(f"{repo} has none of the files {', '.join(names)}")


def named_on_hub(name: str) -> Path:
    """The weights of OWNER/NAME, or the one file of OWNER/NAME/FILE. Raises SourceError."""
    owner, _, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    if not owner or not repo:
        raise SourceError(f"hf-hub:{name}: a repository of the hub is hf-hub:OWNER/NAME")
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
    except ValueError as error:  # it lists those it knows
        raise SourceError(f"there is no architecture {architecture}: {error}") from error


def _find_in_package(_architecture: str, weights: str) -> Path:
    package, _, file = weights.partition("/")
    if not file:
        raise SourceError(f"there is no file of weights at {weights}")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SourceError(f"the package {package} with the weights {file} is not installed")
    return Path(found.origin).parent / file


def _adapt_lite(_network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"network.{name}": tensor for name, tensor in state.items()}


def _build_open_clip(architecture: str, _input_px: int) -> nn.Module:
    import open_clip
    from open_clip.model import _build_vision_tower  # the public way builds the text tower too

    config = open_clip.get_model_config(architecture)
    if config is None:
        raise SourceError(f"open_clip knows no architecture {architecture}")
    tower: nn.Module = _build_vision_tower(
        config["embed_dim"], config["vision_cfg"], quick_gelu=config.get("quick_gelu", False)
    )
    # The paper's descriptor is what comes before the projection to the space shared with text.
    if isinstance(tower, open_clip.transformer.VisionTransformer):
        tower.proj = None
    elif isinstance(tower, open_clip.timm_model.TimmModel):
        tower.head = nn.Identity()
    return tower


def _find_open_clip(architecture: str, weights: str) -> Path:
    import open_clip
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    said = open_clip.get_pretrained_cfg(architecture, weights).get("hf_hub")
    if said is None:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise SourceError(f"there are no weights {weights!r} of open_clip's {architecture}, but {known}")
    repo, _, file = said.rpartition("/")
    return hub_file(repo, (file,) if file else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME))


def _adapt_open_clip(_network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    tower = {name.removeprefix("visual."): state[name] for name in state if name.startswith("visual.")}
    named = tower or state  # of a whole CLIP, the image's half
    return {name: named[name] for name in named if name != "proj" and not name.startswith("head.")}


def _build_timm(architecture: str, input_px: int) -> nn.Module:
    import timm

    if not timm.is_model(architecture):
        raise SourceError(f"timm knows no architecture {architecture}")
    # Only a size that is not the architecture's own is said: not every network takes one.
    own_px = timm.get_pretrained_cfg(architecture).input_size[-1]
    size = {} if input_px == own_px else {"img_size": input_px}
    network: nn.Module = timm.create_model(architecture, num_classes=0, **size)
    return network


def _find_timm(architecture: str, weights: str) -> Path:
    import timm

    known = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if weights not in known:
        tags = ", ".join(known) or "none"
        raise SourceError(f"there are no weights {weights!r} of timm's {architecture}, but {tags}")
    config = timm.get_pretrained_cfg(f"{architecture}.{weights}")
    return hub_file(config.hf_hub_id, ("model.safetensors",))


def _adapt_timm(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    import timm

    unused = (f"{network.pretrained_cfg['classifier']}.", "mask_token")  # type: ignore[index]
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(unused)}
    positions = kept.get("pos_embed")  # (1, tokens, D)
    if isinstance(network, timm.models.VisionTransformer) and positions is not None:
        kept["pos_embed"] = timm.layers.resample_abs_pos_embed(
            positions, list(network.patch_embed.grid_size), num_prefix_tokens=network.num_prefix_tokens
        )
    return kept


FAMILIES: Mapping[str, Family] = {
    "efficientnet-lite": Family(_build_lite, _find_in_package, _adapt_lite),
    "open_clip": Family(_build_open_clip, _find_open_clip, _adapt_open_clip),
    "timm": Family(_build_timm, _find_timm, _adapt_timm),
}
