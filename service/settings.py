"""The settings: read once from `UIE_*` environment variables, frozen, passed down."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingsError
from service.hosts import parse_host

_ROOT = Path(__file__).resolve().parent.parent
_LATER = {"UIE_GALLERY_DIR"}  # of the contract, for the page that is still to come
_CORES = len(os.sched_getaffinity(0))

MAX_EF = 4096
Quantization = Literal["none", "scalar-int8", "turbo-8bit", "turbo-4bit"]


class Settings(BaseSettings):
    """Each field is the environment variable `UIE_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="UIE_", frozen=True, extra="ignore")

    model: Annotated[tuple[str, ...], NoDecode] = Field(
        ("efficientnet-lite0-octet",),
        min_length=1,
        description="A model of the zoo by name, a model folder, or NAME:VERSION in BentoML's store. "
        "Several, separated by commas: a request picks one by name; the index is the first one's.",
    )
    provider: str = Field(
        "cpu", pattern="^[a-z]+$", description="ONNX Runtime execution provider: cpu, cuda, tensorrt, ..."
    )
    threads: int = Field(_CORES, ge=1, description="Threads that decode images and run the model.")
    lanes: int = Field(
        default_factory=lambda said: min(2, said.get("threads", 1)),
        ge=1,
        description="Inferences at a time. On a CPU they share its threads; a lone image has all of them.",
    )
    workers: int = Field(1, ge=1, description="Service processes; more than one needs a Qdrant server.")

    data_dir: Path = Field(Path("data/index"), description="Folder of the embedded index.")
    qdrant_url: str | None = Field(None, description="A Qdrant server, instead of the embedded index.")
    qdrant_api_key: SecretStr | None = Field(None, description="Its key.")
    collection: str = Field("items", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Collection in the index.")
    index_quantization: Quantization = Field(
        "none",
        description="Smaller copies of the vectors that candidates are found by; the vectors score them. "
        "scalar-int8 begins with `python -m service optimise`, turbo-8bit and -4bit with the first item.",
    )
    index_ef: int | None = Field(
        None,
        ge=1,
        le=MAX_EF,
        description="Candidates that a search keeps on its way through an HNSW graph, at least k + 8. "
        "None: as many as the engine does.",
    )

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Bearer keys that are accepted, separated by commas. None: no key is asked for."
    )
    url_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Hosts that images are fetched from by URL, separated by commas: example.org, "
        "*.example.org, example.org:8443, http://example.org (else https). None: no URL is taken.",
    )
    url_timeout_s: float = Field(10, gt=0, description="Longest time that fetching an image may take.")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="Largest encoded image.")
    max_image_pixels: int = Field(64_000_000, ge=1, description="Largest width x height.")
    max_request_bytes: int = Field(256 * 2**20, ge=1, description="Largest body with several images.")
    max_bytes_in_flight: int = Field(
        2**30, ge=1, description="Most bytes of bodies and fetched images in the service at a time."
    )
    max_pixels_in_flight: int = Field(
        512_000_000, ge=1, description="Most pixels being decoded at a time: 4 to 22 bytes each."
    )
    body_timeout_s: float = Field(60, gt=0, description="Longest time that a body may take to arrive.")
    stop_timeout_s: int = Field(
        25, ge=1, description="Longest time that SIGTERM leaves to what is in flight."
    )
    cache_items: int = Field(
        0, ge=0, description="Embeddings kept by the hash of their image's bytes, 0.6 KB each. 0: none."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="json: one object a line, with the ids of the request and of its trace."
    )
    otlp_url: str | None = Field(
        None, description="Where OpenTelemetry traces go: http://127.0.0.1:4318/v1/traces. None: nowhere."
    )
    access_log: bool = Field(False, description="A line for each request.")
    golden_interval_s: float = Field(
        30, gt=0, description="How often the golden image is sent through, for /readyz and /livez."
    )
    max_batch: int = Field(16, ge=1, le=1024, description="Most images in one inference.")
    queue_limit: int = Field(
        512, ge=1, description="Most images in the service at a time, and most calls of the index."
    )

    @field_validator("index_quantization", mode="before")
    @classmethod
    def _not_binary(cls, value: object) -> object:
        if value == "binary":
            raise ValueError("binary finds .42 of the ten nearest at 64 dimensions, and is not offered")
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        keys = tuple(SecretStr(key.strip()) for key in value.split(",") if key.strip())
        if not keys:
            raise ValueError("set, but without a key in it: the service would be open to all")
        return keys

    @field_validator("url_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        hosts = tuple(host.strip() for host in value.split(",") if host.strip())
        for host in hosts:
            parse_host(host)  # refuses what it cannot read
        return hosts

    @model_validator(mode="after")
    def _a_thread_for_each_lane(self) -> Self:
        if self.lanes > self.threads:
            raise ValueError(f"UIE_LANES={self.lanes} needs as many threads: UIE_THREADS is {self.threads}")
        return self

    @model_validator(mode="after")
    def _one_process_per_embedded_index(self) -> Self:
        if self.workers > 1 and self.qdrant_url is None:
            raise ValueError(
                f"UIE_WORKERS={self.workers} needs UIE_QDRANT_URL: "
                "the embedded index can be opened by one process only"
            )
        return self

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Each `model` as a folder: a path, a tag or a name of the zoo, whichever it looks like.

        Raises SettingsError for a tag that is not in BentoML's store.
        """
        return tuple(_folder(model) for model in self.model)


def _folder(model: str) -> Path:
    if "/" in model or model.startswith("."):
        return Path(model)
    if ":" in model:
        return _stored(model)
    return _ROOT / "model_export" / "zoo" / model


def _stored(tag: str) -> Path:
    import bentoml  # takes seconds to import, and only a tag needs it here
    from bentoml.exceptions import BentoMLException

    try:
        return Path(bentoml.models.get(tag).path)
    except (BentoMLException, ValueError) as error:
        raise SettingsError(f"UIE_MODEL: {tag} is not in BentoML's model store: {error}") from error


def load_settings() -> Settings:
    """Read the environment. Raises SettingsError with one sentence per wrong setting."""
    known = {f"UIE_{name.upper()}" for name in Settings.model_fields} | _LATER
    unknown = sorted(name for name in os.environ if name.startswith("UIE_") and name not in known)
    if unknown:  # a misspelt UIE_API_KEYS must not start an open service
        raise SettingsError(f"no such setting: {', '.join(unknown)}")
    try:
        return Settings()
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            name = "_".join(str(part) for part in fault["loc"][:1]).upper()
            lines.append(
                f"UIE_{name}: {fault['msg']}" if name else fault["msg"].removeprefix("Value error, ")
            )
        raise SettingsError("; ".join(lines)) from error
