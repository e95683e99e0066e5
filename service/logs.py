"""Logging: BentoML's format, or one JSON object per record with the ids of its request and its trace."""

import logging
from contextvars import ContextVar

from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

from service.settings import Settings

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
access_log = logging.getLogger("service.access")

_RENAMED = {"asctime": "time", "levelname": "level", "name": "logger"}


def configure(settings: Settings) -> None:
    """Configure the loggers, in the supervisor and in each worker, after BentoML has done so."""
    access_log.setLevel(logging.INFO if settings.access_log else logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each malformed form
    loggers = [logging.getLogger(name) for name in ("bentoml", "uvicorn.error", "circus")]
    for logger in loggers:
        logger.propagate = not logger.handlers  # else each line is written twice
    if settings.log_format == "text":
        return
    formatter = JsonFormatter((*_RENAMED, "message"), rename_fields=_RENAMED, datefmt="%Y-%m-%dT%H:%M:%S%z")
    for handler in {handler for logger in (logging.root, *loggers) for handler in logger.handlers}:
        handler.setFormatter(formatter)
        handler.filters = [_with_ids]  # BentoML's filter adds fields for its own format


def _with_ids(record: logging.LogRecord) -> bool:
    if (current := request_id.get()) is not None:
        record.request_id = current
    if (span := trace.get_current_span().get_span_context()).is_valid:
        record.trace_id = trace.format_trace_id(span.trace_id)
    return True
