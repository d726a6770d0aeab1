"""The one exception that users are meant to read, and how text from outside is shown in it."""

import os


def printable(text: str) -> str:
    """Text for a line of a log or terminal: what would break or colour it (line ends, escapes) is spelled out."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(ValueError):
    """A problem that the user can fix: the message names the field or file and what to do.

    Entry points print it as one line, without a traceback, and exit with code 2. It may quote what a file says of itself,
    such as its columns, so it is made `printable`.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


def one_line(error: BaseException) -> str:
    """An error's text on one line, without the credentials of this process."""
    text = " ".join(str(error).split())
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text
