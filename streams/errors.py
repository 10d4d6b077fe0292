"""What goes wrong, in families by what the caller does next. Foreign errors are translated into these once, in the adapter."""

from __future__ import annotations

from typing import ClassVar

from schemas.result import ErrorType, Outcome, ResultError


class ServingError(Exception):
    """A task could not be served."""

    type: ClassVar[ErrorType] = ErrorType.INTERNAL
    retriable: ClassVar[bool] = False
    outcome: ClassVar[Outcome] = Outcome.FAILED

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail or (type(self).__doc__ or "").partition("\n")[0]
        super().__init__(self.detail)

    def as_result(self) -> ResultError:
        """Return the error as its result carries it."""
        return ResultError(self.type, self.detail, self.retriable)


class RequestError(ServingError):
    """The request must be changed."""

    type = ErrorType.INVALID_REQUEST


class InvalidRequest(RequestError):
    """A field of the request is not what it must be."""


class UnsupportedSchema(RequestError):
    """The request's schema_version is not one this version reads."""

    type = ErrorType.UNSUPPORTED_SCHEMA


class UnknownModel(RequestError):
    """No configured backend has the model that the request names."""

    type = ErrorType.UNKNOWN_MODEL


class RequestTooLarge(RequestError):
    """The request is larger than it may be."""

    type = ErrorType.REQUEST_TOO_LARGE


class CapacityError(ServingError):
    """There is no room now; come back later."""

    retriable = True


class Quarantined(ServingError):
    """Worker after worker ended while it served this request."""

    type = ErrorType.QUARANTINED


class DeadlineExpired(ServingError):
    """The deadline passed before the answer was there."""

    type = ErrorType.DEADLINE_EXPIRED
    outcome = Outcome.EXPIRED


class DeadlineInfeasible(DeadlineExpired):
    """The deadline could not be met when the request was taken in: more is due before it than can be served until then."""

    type = ErrorType.DEADLINE_INFEASIBLE


class BackendError(ServingError):
    """A model server did not answer as it should.

    `retry_after_s` is what the server asked for, None when it said nothing.
    """

    type = ErrorType.BACKEND_UNAVAILABLE

    def __init__(self, detail: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class InternalError(BackendError):
    """Something went wrong inside the worker."""

    type = ErrorType.INTERNAL


class BackendUnavailable(BackendError):
    """The model server cannot be reached, or says that it is too busy."""

    retriable = True


class BackendOverloaded(BackendUnavailable):
    """The model server answered 429 or 503: it lives, and has no room."""


class BackendFailed(BackendUnavailable):
    """The model server answered 500: it broke on this request, or is broken itself."""


class BackendTimeout(BackendError):
    """The model server did not answer in time."""

    type = ErrorType.BACKEND_TIMEOUT
    retriable = True


class BackendRejected(BackendError):
    """The model server refused the request."""

    type = ErrorType.BACKEND_REJECTED


class Poisonous(BackendRejected):
    """The model server fails on this request alone, and answered others of its batch."""

    type = ErrorType.POISON


class BackendProtocolError(BackendError):
    """The model server's answer could not be understood."""

    type = ErrorType.BACKEND_PROTOCOL
