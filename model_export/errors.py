"""Errors of the export.

ExportError             shown as one sentence on stderr, exit status 1
├── SourceError         weights or data are missing or not what they should be
├── ParityError         the exported model does not do what the trained one does
├── ConfigError         a training strategy that makes no sense
└── TrainingError       training went wrong, or its folder is not this run's
"""


class ExportError(Exception):
    """Base of all errors that a user of the export may see."""


class SourceError(ExportError):
    """Weights or data are missing or not what they should be."""


class ParityError(ExportError):
    """The exported model does not do what the trained one does."""


class ConfigError(ExportError):
    """A training strategy that makes no sense."""


class TrainingError(ExportError):
    """Training went wrong, or its folder is not this run's."""
