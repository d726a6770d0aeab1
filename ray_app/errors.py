"""The one exception that users are meant to read."""


class UserError(ValueError):
    """A problem that the user can mend: the message names the field or file and what to do.

    Entry points print it as one line, without a traceback, and exit with code 2.
    """
