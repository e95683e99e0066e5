"""Errors of the export.

ExportError             shown as one sentence on stderr, exit status 1
├── SourceError         weights, a model or data are missing or not what they should be
├── ParityError         the exported model does not do what the trained one does
├── VerifyError         a model folder fails a check
├── WriteError          a file could not be written; nothing half-written is left
├── ConfigError         a training strategy that makes no sense
└── TrainingError       training went wrong, or its folder is not this run's
"""


class ExportError(Exception):
    """Base of all errors that a user of the export may see."""


class SourceError(ExportError):
    """Weights, a model or data are missing or not what they should be."""


class ParityError(ExportError):
    """The exported model does not do what the trained one does."""


class VerifyError(ExportError):
    """A model folder fails a check."""


class WriteError(ExportError):
    """A file could not be written; nothing half-written is left."""


class ConfigError(ExportError):
    """A training strategy that makes no sense."""


class TrainingError(ExportError):
    """Training went wrong, or its folder is not this run's."""
