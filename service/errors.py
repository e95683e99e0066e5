"""Every error of the service, and the step of the data flow that raises it.

    request ──read──> bytes ──decode──> pixels ──queue──> batch ──infer──> embedding ──search──> hits

ServiceError                      is sent to the client as an RFC 9457 problem
├── InvalidRequest          400   read: a parameter or field is missing, malformed, out of range or unknown
├── Unauthorized            401   read: the API key is missing or wrong
├── CrossSite               403   read: a web page of another site sent the request
├── UnknownHost             421   read: the Host header names another server
├── UnsupportedMediaType    415   read: the route does not accept the body's content type
├── ImageTooLarge           413   read: too many bytes; decode: too many pixels according to the header
├── UnfetchableImage        400   read: no acceptable image at the URL
├── HeadersTooLarge         431   read: the request line and headers are too long
├── UndecodableImage        400   decode: the bytes are not a complete image of a supported format
├── RequestTimeout          408   read: the body arrives too slowly
├── Overloaded              429   read: too many request bytes in flight; queue: full
├── DeadlineExceeded        504   read to search: the client's deadline has passed
├── EncoderFailed           500   infer: the model failed on a decoded image
├── EmbeddingShape          422   search: the vector is not an embedding of this model
├── NotFound                404   read: no such route
│   ├── UnknownModel              read
│   ├── UnknownItem               search
│   └── UnknownDomain             search
├── MethodNotAllowed        405   read
├── FingerprintMismatch     409   search: the index holds vectors of another model
├── IndexUnavailable        503   search
└── NotReady                503   the service is starting, stopping or unhealthy

StartupError                      the service refuses to start
├── SettingsError                 a setting is invalid, or two settings conflict
└── ManifestError                 a model folder is incomplete, altered or not supported
"""

from typing import Any, ClassVar


class ServiceError(Exception):
    """Base of all errors that are sent to clients; `members` are extra fields of the problem object."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members

    def problem(self) -> dict[str, Any]:
        """Return the RFC 9457 problem object."""
        return {
            "type": self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }


class InvalidRequest(ServiceError):
    """A parameter or field is missing, malformed, out of range or unknown."""

    status, slug, title = 400, "invalid-request", "Invalid request"


class Unauthorized(ServiceError):
    """API keys are configured, and the request's key is missing or wrong."""

    status, slug, title = 401, "unauthorized", "Unauthorized"


class CrossSite(ServiceError):
    """A browser sent the request for a page of another site."""

    status, slug, title = 403, "cross-site", "Cross-site request"


class UnknownHost(ServiceError):
    """The Host header is not one that this service accepts."""

    status, slug, title = 421, "unknown-host", "Unknown host"


class UnsupportedMediaType(ServiceError):
    """The route does not accept the body's content type."""

    status, slug, title = 415, "unsupported-media-type", "Unsupported media type"


class ImageTooLarge(ServiceError):
    """The body has too many bytes, or the image too many pixels."""

    status, slug, title = 413, "image-too-large", "Image too large"


class UnfetchableImage(ServiceError):
    """There is no acceptable image at the URL."""

    status, slug, title = 400, "unfetchable-image", "Unfetchable image"


class HeadersTooLarge(ServiceError):
    """The request line and headers are too long."""

    status, slug, title = 431, "headers-too-large", "Headers too large"


class UndecodableImage(ServiceError):
    """The bytes are not a complete image of a supported format."""

    status, slug, title = 400, "undecodable-image", "Undecodable image"


class RequestTimeout(ServiceError):
    """The request arrives too slowly."""

    status, slug, title = 408, "request-timeout", "Request timeout"


class Overloaded(ServiceError):
    """Too much is in flight to accept more."""

    status, slug, title = 429, "overloaded", "Overloaded"


class DeadlineExceeded(ServiceError):
    """The client's deadline has passed."""

    status, slug, title = 504, "deadline-exceeded", "Deadline exceeded"


class EncoderFailed(ServiceError):
    """The model returned no usable embedding for a decoded image."""

    slug, title = "encoder-failed", "Encoder failed"


class EmbeddingShape(ServiceError):
    """A vector in the request has the wrong length, is not finite, or is zero."""

    status, slug, title = 422, "embedding-shape", "Not an embedding of this model"


class NotFound(ServiceError):
    """The route does not exist."""

    status, slug, title = 404, "not-found", "Not found"


class UnknownModel(NotFound):
    """No model of this name is served."""

    slug, title = "unknown-model", "Unknown model"


class UnknownItem(NotFound):
    """No item has this id."""

    slug, title = "unknown-item", "Unknown item"


class UnknownDomain(NotFound):
    """The index holds no item of this domain."""

    slug, title = "unknown-domain", "Unknown domain"


class MethodNotAllowed(ServiceError):
    """The route does not support the method."""

    status, slug, title = 405, "method-not-allowed", "Method not allowed"


class FingerprintMismatch(ServiceError):
    """The index holds vectors of another model."""

    status, slug, title = 409, "fingerprint-mismatch", "Index of another model"


class IndexUnavailable(ServiceError):
    """The index does not respond."""

    status, slug, title = 503, "index-unavailable", "Index unavailable"


class NotReady(ServiceError):
    """The service is starting, stopping or unhealthy."""

    status, slug, title = 503, "not-ready", "Not ready"


def titles_by_status() -> dict[int, list[str]]:
    """Return the titles of all service errors, grouped by HTTP status."""
    titles: dict[int, list[str]] = {}
    classes: list[type[ServiceError]] = [ServiceError]
    while classes:
        error = classes.pop(0)
        classes += error.__subclasses__()
        if error.title not in titles.setdefault(error.status, []):
            titles[error.status].append(error.title)
    return dict(sorted(titles.items()))


class StartupError(Exception):
    """The service refuses to start."""


class SettingsError(StartupError):
    """A setting is invalid, or two settings conflict."""


class ManifestError(StartupError):
    """A model folder is incomplete, altered or not supported."""
