"""Errors of requests, independent of HTTP; the HTTP layer maps each class to a status."""


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        code: Short and stable, for programs, such as `too_long`.
        message: What is wrong and what to do, for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # both, so that it can be pickled
        self.code, self.message = code, message

    def __str__(self) -> str:
        return self.message


class BadRequest(RequestError):
    """The caller can fix it."""


class NotFound(RequestError):
    """The requested item is not in this release."""


class Overloaded(RequestError):
    """Too many requests at once; trying again helps."""


class Unavailable(RequestError):
    """Nothing can be answered now: no release is loaded, or the answer took too long."""
