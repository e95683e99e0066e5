"""Settings: read once from `UIE_*` environment variables, frozen, and passed down."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    HttpUrl,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingsError
from service.hosts import parse_host, parse_name
from service.process import usable_cpus

_ROOT = Path(__file__).resolve().parent.parent
_RESERVED = {"UIE_GALLERY_DIR"}  # part of the contract, for the web page that is not implemented yet
# What Kubernetes adds to the environment of each pod in a namespace with a Service named `uie` or `uie-...`.
_KUBERNETES = re.compile(
    r"UIE_(\w+_)?("
    r"SERVICE_HOST=[0-9a-f.:]+"
    r"|SERVICE_PORT(_\w+)?=\d+"
    r"|PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://[0-9a-f.:\[\]]+:\d+"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO=(tcp|udp|sctp)|PORT=\d+|ADDR=[0-9a-f.:]+)"
    r")"
)

MAX_EF = 4096
Quantization = Literal["none", "scalar-int8", "turbo-8bit", "turbo-4bit"]


class Settings(BaseSettings):
    """Each field is the environment variable `UIE_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="UIE_", frozen=True, extra="ignore")

    model: Annotated[tuple[str, ...], NoDecode] = Field(
        ("efficientnet-lite0-octet",),
        min_length=1,
        description="Models to serve, separated by commas: a zoo model's name, a folder, or NAME:VERSION in "
        "BentoML's store. Requests select a model by name; the index contains the first one's embeddings.",
    )
    provider: str = Field("cpu", pattern="^[a-z]+$", description="Provider of ONNX Runtime: cpu, cuda, ...")
    workers: int = Field(1, ge=1, description="Service processes. They share the index.")
    threads: int = Field(
        default_factory=lambda values: max(1, usable_cpus() // values.get("workers", 1)),
        ge=1,
        description="Threads that decode images and run the model, in each worker. Default: the usable CPUs, "
        "by affinity and cgroup quota, divided by the workers.",
    )
    lanes: int = Field(
        default_factory=lambda values: min(2, values.get("threads", 1)),
        ge=1,
        description="Concurrent inferences. On a CPU they share the threads; a single image uses all.",
    )

    data_dir: Path = Field(Path("data/index"), description="Folder of the embedded index.")
    qdrant_url: str | None = Field(None, description="URL of a Qdrant server. None: the embedded index.")
    qdrant_api_key: SecretStr | None = Field(None, description="API key of the Qdrant server.")
    collection: str = Field("items", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Collection of the index.")
    index_quantization: Quantization = Field(
        "none",
        description="Quantized copies of the vectors for finding candidates; the full vectors score them. "
        "scalar-int8 requires `python -m service optimise`, turbo-8bit and turbo-4bit do not.",
    )
    index_ef: int | None = Field(
        None,
        ge=1,
        le=MAX_EF,
        description="Candidates of an HNSW search, at least k + 8. None: by the index's size.",
    )

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Accepted bearer keys, separated by commas. None: no authentication."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names by which clients address the service beside localhost, separated by commas: "
        "example.org, *.example.org, 192.0.2.1, or * for any. None: localhost only; any if keys are set.",
    )
    url_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Hosts from which images may be fetched by URL, separated by commas: example.org, "
        "*.example.org, example.org:8443, http://example.org (default: https). None: URLs are refused.",
    )
    url_timeout_s: float = Field(10, gt=0, description="Timeout for fetching an image, in seconds.")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="Maximum size of an encoded image, in bytes.")
    max_image_pixels: int = Field(64_000_000, ge=1, description="Maximum image size, width x height.")
    max_request_bytes: int = Field(
        256 * 2**20, ge=1, description="Maximum bytes of a body with several images."
    )
    max_bytes_in_flight: int = Field(2**30, ge=1, description="Maximum bytes of bodies and fetched images.")
    max_pixels_in_flight: int = Field(
        512_000_000, ge=1, description="Maximum pixels in decoding, 4-22 bytes each."
    )
    body_timeout_s: float = Field(60, gt=0, description="Timeout for receiving a request body, in seconds.")
    keep_alive_s: int = Field(
        75, ge=1, description="Seconds before an idle connection is closed: longer than clients reuse it."
    )
    stop_timeout_s: int = Field(25, ge=1, description="Seconds to finish requests in flight after SIGTERM.")
    cache_items: int = Field(0, ge=0, description="Embeddings in the cache, 0.6 KB each. 0: no cache.")
    log_format: Literal["text", "json"] = Field(
        "text", description="text, or json: one object per line, with request id and trace id."
    )
    otlp_url: str | None = Field(
        None, description="Endpoint of OpenTelemetry, as http://127.0.0.1:4318/v1/traces. None: no traces."
    )
    access_log: bool = Field(False, description="Log a line per request.")
    golden_interval_s: float = Field(30, gt=0, description="Seconds between checks with the golden image.")
    max_batch: int = Field(16, ge=1, le=1024, description="Maximum number of images per inference.")
    queue_limit: int = Field(512, ge=1, description="Maximum images, and maximum index calls, in flight.")

    @model_validator(mode="before")
    @classmethod
    def _drop_blank(cls, values: dict[str, Any]) -> dict[str, Any]:
        # Compose files and charts pass unset settings as empty values. Not so for the keys: the
        # service would be open to everyone.
        return {
            name: value
            for name, value in values.items()
            if name == "api_keys" or not isinstance(value, str) or value.strip()
        }

    @field_validator("index_quantization", mode="before")
    @classmethod
    def _not_binary(cls, value: object) -> object:
        if value == "binary":
            raise ValueError("binary is not supported: it finds .42 of the ten nearest at 64 dimensions")
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @field_validator("api_keys", "allowed_hosts", "url_hosts", mode="before")
    @classmethod
    def _split(cls, value: object, field: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if field.field_name == "api_keys" and not parts:
            raise ValueError("set without a key: the service would be open to everyone")
        return parts

    @field_validator("qdrant_url", "otlp_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            TypeAdapter(HttpUrl).validate_python(value)
        except ValidationError as error:  # the message has no value: a URL may contain a password
            raise ValueError("must be a URL that begins with http:// or https:// and names a host") from error
        return value.strip()

    @field_validator("allowed_hosts")
    @classmethod
    def _parse_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_name(name) for name in names)

    @field_validator("url_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            parse_host(host)
        return hosts

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lanes > self.threads:
            raise ValueError(f"UIE_LANES={self.lanes} exceeds UIE_THREADS={self.threads}")
        return self

    @property
    def max_base64_bytes(self) -> int:
        """The maximum bytes of a JSON body with images in base64.

        One image fits with line breaks and escapes. The body is parsed in one step, so more than the
        32 MiB would stop the service for too long.
        """
        return max(32 * 2**20, self.max_image_bytes * 3 // 2 + 64 * 2**10)

    @property
    def index_folder(self) -> Path:
        """The folder of the embedded index."""
        return self.data_dir / self.collection

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """The folder of each `model`. Raises SettingsError if the zoo or BentoML's store lacks it."""
        return tuple(_folder(model) for model in self.model)


def _folder(model: str) -> Path:
    if "/" in model or model.startswith("."):
        return Path(model)
    if ":" not in model:
        return _zoo_folder(model)
    import bentoml  # takes seconds to import, and only a tag needs it
    from bentoml.exceptions import BentoMLException

    try:
        return Path(bentoml.models.get(model).path)
    except (BentoMLException, ValueError) as error:
        raise SettingsError(f"UIE_MODEL: {model} is not in BentoML's model store: {error}") from error


def _zoo_folder(name: str) -> Path:
    zoo = _ROOT / "model_export" / "zoo"
    folders = {file.parent.name: file.parent for file in zoo.glob("*/manifest.json")}
    if name not in folders:
        raise SettingsError(
            f"UIE_MODEL: the zoo has no model {name!r}, only {', '.join(sorted(folders))}; "
            f"a folder is written with a slash, as in ./{name}"
        )
    return folders[name]


def load_settings() -> Settings:
    """Read the environment. Raises SettingsError with one sentence per invalid setting."""
    names = {f"UIE_{name.upper()}" for name in Settings.model_fields} | _RESERVED
    unknown = sorted(
        name
        for name, value in os.environ.items()
        if name.startswith("UIE_") and name not in names and not _KUBERNETES.fullmatch(f"{name}={value}")
    )
    if unknown:  # a misspelt UIE_API_KEYS must not start an open service
        raise SettingsError(f"no such setting: {', '.join(unknown)}; `python -m service settings` lists them")
    try:
        return Settings()
    except ValidationError as error:
        sentences = []
        for fault in error.errors():
            if (
                fault["type"] == "default_factory_not_called"
            ):  # the default depends on another invalid setting
                continue
            name = "".join(f"UIE_{part}: ".upper() for part in fault["loc"][:1])
            sentences.append(name + fault["msg"].removeprefix("Value error, "))
        raise SettingsError("; ".join(sentences)) from error
