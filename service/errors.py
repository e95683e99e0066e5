"""Every error of the service, and the arrow of the data flow that it belongs to.

    request ──read──> bytes ──decode──> pixels ──queue──> batch ──infer──> embedding ──search──> hits

ServiceError                      becomes one RFC 9457 answer
├── InvalidRequest          400   read: a parameter or field is missing, malformed or out of range
├── Unauthorized            401   read: no key, or a wrong one
├── UnsupportedMediaType    415   read
├── ImageTooLarge           413   read (bytes) and decode (pixels, known from the header)
├── UnfetchableImage        400   read: the URL that was given leads to no image that we would take
├── HeadersTooLarge         431   read
├── UndecodableImage        400   decode
├── RequestTimeout          408   read: the body came too slowly
├── Overloaded              429   read: too many bytes held; queue: full
├── DeadlineExceeded        504   read to search: the client's deadline has passed
├── EncoderFailed           500   infer: ours, not the client's
├── EmbeddingShape          422   search: a given vector cannot be an embedding of this model
├── NotFound                404   search
│   ├── UnknownModel              read
│   ├── UnknownItem
│   └── UnknownDomain
├── MethodNotAllowed        405   read
├── FingerprintMismatch     409   search: the index holds another model's vectors
├── IndexUnavailable        503   search
└── NotReady                503   the service is starting or stopping

StartupError                      the service refuses to start, and says why
├── SettingsError                 a setting is wrong, or two do not go together
└── ManifestError                 a model folder is incomplete, altered or not understood
"""

from typing import Any, ClassVar


class ServiceError(Exception):
    """Base of all errors that a client may see; `members` are extra fields of the problem."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members

    def problem(self) -> dict[str, Any]:
        """The RFC 9457 object."""
        return {
            "type": self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }


class InvalidRequest(ServiceError):
    """A parameter or field is missing, malformed or out of range."""

    status, slug, title = 400, "invalid-request", "Invalid request"


class Unauthorized(ServiceError):
    """Keys are configured, and none or a wrong one was given."""

    status, slug, title = 401, "unauthorized", "Unauthorized"


class UnsupportedMediaType(ServiceError):
    """The body's content type is not one that the route takes."""

    status, slug, title = 415, "unsupported-media-type", "Unsupported media type"


class ImageTooLarge(ServiceError):
    """Too many bytes, or too many pixels."""

    status, slug, title = 413, "image-too-large", "Image too large"


class UnfetchableImage(ServiceError):
    """The URL leads to no image that we would take."""

    status, slug, title = 400, "unfetchable-image", "Unfetchable image"


class HeadersTooLarge(ServiceError):
    """The request's line and headers are too long."""

    status, slug, title = 431, "headers-too-large", "Headers too large"


class UndecodableImage(ServiceError):
    """The bytes are not an image that we can decode whole."""

    status, slug, title = 400, "undecodable-image", "Undecodable image"


class RequestTimeout(ServiceError):
    """The body came too slowly."""

    status, slug, title = 408, "request-timeout", "Request timeout"


class Overloaded(ServiceError):
    """There is no room for more."""

    status, slug, title = 429, "overloaded", "Overloaded"


class DeadlineExceeded(ServiceError):
    """The client's deadline has passed."""

    status, slug, title = 504, "deadline-exceeded", "Deadline exceeded"


class EncoderFailed(ServiceError):
    """The model did not give an embedding for an image that was decoded."""

    slug, title = "encoder-failed", "Encoder failed"


class EmbeddingShape(ServiceError):
    """A given vector has the wrong length, is not finite, or is zero."""

    status, slug, title = 422, "embedding-shape", "Not an embedding of this model"


class NotFound(ServiceError):
    """No such route."""

    status, slug, title = 404, "not-found", "Not found"


class UnknownModel(NotFound):
    """No model of this name is served."""

    slug, title = "unknown-model", "Unknown model"


class UnknownItem(NotFound):
    """No item with this id."""

    slug, title = "unknown-item", "Unknown item"


class UnknownDomain(NotFound):
    """No item of this domain is indexed."""

    slug, title = "unknown-domain", "Unknown domain"


class MethodNotAllowed(ServiceError):
    """The route has no such method."""

    status, slug, title = 405, "method-not-allowed", "Method not allowed"


class FingerprintMismatch(ServiceError):
    """The index holds another model's vectors."""

    status, slug, title = 409, "fingerprint-mismatch", "Index of another model"


class IndexUnavailable(ServiceError):
    """The index cannot be reached."""

    status, slug, title = 503, "index-unavailable", "Index unavailable"


class NotReady(ServiceError):
    """The service is starting or stopping."""

    status, slug, title = 503, "not-ready", "Not ready"


class StartupError(Exception):
    """The service refuses to start."""


class SettingsError(StartupError):
    """A setting is wrong, or two do not go together."""


class ManifestError(StartupError):
    """A model folder is incomplete, altered or not understood."""
