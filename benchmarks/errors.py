"""Errors of the harness.

BenchmarkError              printed as one sentence on stderr, exit status 1
├── DataError               a data set is missing, incomplete or malformed
│   └── SourceUnavailable   one source of Octet is unavailable; its domains are left out
├── TargetError             the service cannot be reached, or its response is not valid
├── RunError                a run folder is missing, malformed, or belongs to another run
│   └── Interrupted         Ctrl-C; exit status 130
└── GateFailed              a run is worse than its baseline
"""


class BenchmarkError(Exception):
    """Base class of all errors of the harness that users see."""


class DataError(BenchmarkError):
    """A data set is missing, incomplete or malformed."""


class SourceUnavailable(DataError):
    """A source of Octet is unavailable on this machine; its domains are left out."""


class TargetError(BenchmarkError):
    """The service cannot be reached, or its response is not valid."""


class RunError(BenchmarkError):
    """A run folder is missing, malformed, or belongs to another run."""


class Interrupted(RunError):
    """Ctrl-C was pressed; the observations so far are kept."""


class GateFailed(BenchmarkError):
    """A run is worse than its baseline."""
