"""BentoML's model store: exported models as `NAME:FINGERPRINT`."""

import shutil
from contextlib import suppress
from pathlib import Path

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLException, NotFound

from model_export.errors import WriteError
from service.manifest import Manifest


def check_name(folder: Path) -> None:
    """Raise WriteError if BentoML does not accept the folder's name as a model name."""
    try:
        bentoml.Tag(folder.name.lower(), "0")
    except ValueError as error:
        raise WriteError(f"{folder}: {error}; choose another name or use --no-store") from error


def put_in_store(folder: Path, manifest: Manifest) -> str:
    """Copy a model folder into the store and return its tag. An existing entry is kept.

    Raises WriteError.
    """
    try:
        tag = bentoml.Tag(manifest.name.lower(), manifest.fingerprint)
        with suppress(NotFound):
            return str(bentoml.models.get(tag).tag)
        labels = {"fingerprint": manifest.fingerprint, "precision": manifest.precision}
        with bentoml.models.create(tag, labels=labels) as model:  # added only when complete
            shutil.copytree(folder, model.path, dirs_exist_ok=True)
        return str(tag)
    except (BentoMLException, OSError, ValueError) as error:
        raise WriteError(f"{folder} could not be put into BentoML's model store: {error}") from error


def stored_models() -> dict[str, Path | WriteError]:
    """Return folders that have a manifest by tag, or an error for an entry that the store cannot read.

    BentoML's own listing fails completely if one entry is damaged.
    """
    models: dict[str, Path | WriteError] = {}
    for file in sorted(Path(BentoMLContainer.model_store_dir.get()).glob("*/*/manifest.json")):
        tag = f"{file.parent.parent.name}:{file.parent.name}"
        try:
            models[tag] = Path(bentoml.models.get(tag).path)
        except Exception as error:  # from BentoML, its YAML reader, or a KeyError
            models[tag] = WriteError(
                f"model.yaml in BentoML's store: {(str(error) or repr(error)).splitlines()[0]}"
            )
    return models
