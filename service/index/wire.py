"""Messages between a service and its index process: the length in four bytes, then MessagePack."""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from service.errors import IndexUnavailable, ServiceError, UnknownDomain
from service.index.commands import RESULTS, Command
from service.settings import Quantization

_LENGTH_BYTES = 4
# Errors of commands that the client of the service gets; all others mean that the index failed.
_ERRORS: dict[str, type[ServiceError]] = {UnknownDomain.slug: UnknownDomain}


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """The first message on a connection, from the index process."""

    quantization: Quantization
    fingerprint: str


class Request(msgspec.Struct, array_like=True, frozen=True):
    """A command. The response has the same number."""

    number: int
    command: Command


class Fault(msgspec.Struct, array_like=True, frozen=True):
    """A `ServiceError`."""

    slug: str
    detail: str
    members: dict[str, Any]

    def error(self) -> ServiceError:
        """Return the error to raise."""
        return _ERRORS.get(self.slug, IndexUnavailable)(self.detail, **self.members)


class Response(msgspec.Struct, array_like=True, frozen=True):
    """The result of a command, encoded by itself, or its error."""

    number: int
    result: msgspec.Raw
    fault: Fault | None = None


def _encode_array(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value, dtype="<f4").tobytes()
    raise TypeError(f"no message carries a {type(value).__name__}")


def _decode_array(_: type, value: Any) -> Any:
    return np.frombuffer(value, dtype="<f4")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_results = {kind: msgspec.msgpack.Decoder(result, dec_hook=_decode_array) for kind, result in RESULTS.items()}
decode_hello = msgspec.msgpack.Decoder(Hello).decode
decode_request = msgspec.msgpack.Decoder(Request, dec_hook=_decode_array).decode
decode_response = msgspec.msgpack.Decoder(Response).decode


def encode(value: Any) -> bytes:
    """Return the MessagePack of a message or result; embeddings as little-endian float32."""
    return _encoder.encode(value)


def encoded(result: Any) -> msgspec.Raw:
    """Return a result for a `Response`."""
    return msgspec.Raw(encode(result))


NO_RESULT = encoded(None)


def framed(message: Any) -> bytes:
    """Return a message with its length."""
    data = encode(message)
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


def decode_result(command: Command, result: msgspec.Raw) -> Any:
    """Return the result of this command."""
    return _results[type(command)].decode(result)


class Frames:
    """Splits received bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the complete messages, without their lengths."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH_BYTES:
            end = start + _LENGTH_BYTES
            end += int.from_bytes(self._buffer[start:end], "little")
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[start + _LENGTH_BYTES : end])
            start = end
        del self._buffer[:start]
