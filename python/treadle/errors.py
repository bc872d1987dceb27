"""Exceptions raised by the Python package.

Every error a caller can cause derives from :class:`TreadleError`, whose ``code`` is a short stable
word that programs can test, while the message is written for people: it names the field, the value
and what would be right.
"""

from __future__ import annotations


class TreadleError(Exception):
    """Base class of every error Treadle raises on purpose.

    ``code`` is a stable, lower-case identifier. Each class has a default, and a raise site may give
    a more precise one.
    """

    code: str = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ConfigError(TreadleError, ValueError):
    """A configuration value or a file of a model directory is wrong."""

    code = "bad_config"


class TokenizerError(TreadleError, ValueError):
    """A tokenizer cannot be loaded, or was given text or ids it cannot handle."""

    code = "tokenizer"


class ChatTemplateError(TreadleError, ValueError):
    """Messages or a chat template cannot be turned into a prompt."""

    code = "chat_template"


class InvalidArgumentError(TreadleError, ValueError):
    """A parameter has the wrong type, is out of range or contradicts another one."""

    code = "invalid_argument"


class InvalidModelError(ConfigError):
    """A model directory is damaged, incomplete or inconsistent."""

    code = "invalid_model"


class UnsupportedError(TreadleError):
    """A known thing that this build or version does not do."""

    code = "unsupported"


class NotFoundError(TreadleError, FileNotFoundError):
    """A path that does not exist."""

    code = "not_found"


class UnknownSessionError(TreadleError, LookupError):
    """The session was never started, was ended or has expired."""

    code = "unknown_session"


class TooLongError(TreadleError, ValueError):
    """The prompt does not fit session_len or the KV pool."""

    code = "too_long"


class QueueFullError(TreadleError):
    """The waiting line is at max_queue_size; try again later."""

    code = "queue_full"


class RequestCancelledError(TreadleError):
    """The caller cancelled the request."""

    code = "cancelled"


class DeadlineExceededError(TreadleError, TimeoutError):
    """The request's timeout passed before it finished."""

    code = "deadline_exceeded"


class ShutdownError(TreadleError):
    """The engine is closed or closing."""

    code = "shutdown"


class OutOfMemoryError(TreadleError, MemoryError):
    """Weights, workspace or KV pool do not fit."""

    code = "out_of_memory"


class DeviceError(TreadleError):
    """The device failed; the engine must be loaded again."""

    code = "device"


class InternalError(TreadleError):
    """A bug in Treadle."""

    code = "internal"


_ENGINE_ERRORS: dict[str, type[TreadleError]] = {
    kind.code: kind
    for kind in (
        InvalidArgumentError,
        InvalidModelError,
        UnsupportedError,
        NotFoundError,
        UnknownSessionError,
        TooLongError,
        QueueFullError,
        RequestCancelledError,
        DeadlineExceededError,
        ShutdownError,
        OutOfMemoryError,
        DeviceError,
        InternalError,
    )
}


def from_code(code: str, message: str) -> TreadleError:
    """The exception for an error code of the C++ engine (``treadle::error_code_name``)."""
    return _ENGINE_ERRORS.get(code, TreadleError)(message, code=code)
