"""BentoML's model store: exported models as `NAME:FINGERPRINT`."""

import shutil
from pathlib import Path

import bentoml
from bentoml.exceptions import BentoMLException, NotFound

from model_export.errors import WriteError
from service.manifest import Manifest


def put_in_store(folder: Path, manifest: Manifest) -> str:
    """Copy a model folder into the store and return its tag; one that is there already is kept.

    Raises WriteError.
    """
    try:
        tag = bentoml.Tag(manifest.name.lower(), manifest.fingerprint)
        try:
            return str(bentoml.models.get(tag).tag)
        except NotFound:
            pass
        labels = {"fingerprint": manifest.fingerprint, "precision": manifest.precision}
        with bentoml.models.create(tag, labels=labels) as model:  # whole, or not in the store
            shutil.copytree(folder, model.path, dirs_exist_ok=True)
        return str(tag)
    except (BentoMLException, OSError, ValueError) as error:
        raise WriteError(f"{folder} could not be put into BentoML's model store: {error}") from error


def stored_models() -> dict[str, Path]:
    """Folders by tag, those that hold a manifest of ours."""
    found = {str(model.tag): Path(model.path) for model in bentoml.models.list()}
    return {tag: folder for tag, folder in sorted(found.items()) if (folder / "manifest.json").exists()}
