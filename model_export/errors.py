"""Errors of model_export, printed as one sentence on stderr with exit status 1."""


class ExportError(Exception):
    """Base class of all errors shown to the user."""


class SourceError(ExportError):
    """Weights, a model or data are missing or invalid."""


class ParityError(ExportError):
    """The exported model does not reproduce the trained one."""


class VerifyError(ExportError):
    """A model folder fails a check."""


class WriteError(ExportError):
    """A file could not be written; no partial file remains."""


class ConfigError(ExportError):
    """A training strategy is invalid."""


class TrainingError(ExportError):
    """Training failed, or its folder belongs to another run."""
