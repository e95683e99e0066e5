"""Errors of model_export.

ExportError             printed as one sentence on stderr, exit status 1
├── SourceError         weights, a model or data are missing or invalid
├── ParityError         the exported model does not reproduce the trained one
├── VerifyError         a model folder fails a check
├── WriteError          a file cannot be written; no incomplete file is left
├── ConfigError         a training strategy is invalid
└── TrainingError       training failed, or its folder belongs to another run
"""


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
