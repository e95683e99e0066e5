"""Errors of the harness.

BenchmarkError              shown as one sentence on stderr, exit status 1
├── DataError               a data set is missing, incomplete or malformed
│   └── SourceUnavailable   one source of Octet cannot be had; its domain is left out
├── TargetError             the service cannot be reached, or answers what it should not
├── RunError                a run folder is missing, malformed, or belongs to another run
│   └── Interrupted         Ctrl-C; exit status 130
└── GateFailed              a run falls behind its baseline
"""


class BenchmarkError(Exception):
    """Base of all errors that a user of the harness may see."""


class DataError(BenchmarkError):
    """A data set is missing, incomplete or malformed."""


class SourceUnavailable(DataError):
    """One source of Octet cannot be had on this machine; its domain is left out."""


class TargetError(BenchmarkError):
    """The service cannot be reached, or answers what it should not."""


class RunError(BenchmarkError):
    """A run folder is missing, malformed, or belongs to another run."""


class Interrupted(RunError):
    """Ctrl-C: what was observed is kept."""


class GateFailed(BenchmarkError):
    """A run falls behind its baseline."""
