"""No secret is part of a configuration, which is stored in manifests and releases, printed in reports, and shown in errors.

A key ending in `_env` names the environment variable that holds one.
"""

import os
import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ray_app.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_NAME_ALONE_IS_SECRET = ("http", "https", "redis", "rediss", "s3")  # others' users are containers, or `anonymous`
_SECRET = re.compile(
    r"passw|pwd$|secret|token|credential|signature|^sig$|^auth$|(api|access|account|shared|private).?key", re.I
)


def holds_credentials(text: str) -> bool:
    """Whether a URL in the text has a password, a user who is one, or a query part that says so."""
    return any(map(_is_secret, _URL.findall(text)))


def _is_secret(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
        options = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:  # such as a password with a slash in it, which leaves `user:pass` as host and port
        return "@" in url
    if parts.password is not None or (parts.username and parts.scheme.lower() in _NAME_ALONE_IS_SECRET):
        return True
    if "@" in url and not parts.hostname and parts.netloc:
        return True
    return any(_SECRET.search(name) or holds_credentials(value) for name, value in options)


def keys_with_credentials(tree: Any, key: str = "") -> list[str]:
    """Keys of a configuration, such as `serve.cache.redis_url`, whose values hold credentials."""
    if isinstance(tree, dict):
        parts = [(f"{key}.{name}" if key else str(name), value) for name, value in tree.items()]
    elif isinstance(tree, list):
        parts = [(f"{key}.{i}", value) for i, value in enumerate(tree)]
    else:
        return [key] if isinstance(tree, str) and holds_credentials(tree) else []
    return [found for name, value in parts for found in keys_with_credentials(value, name)]


def read_secret(variable: str, key: str) -> str:
    """A secret from the environment.

    Args:
        variable: Its name.
        key: Of the configuration that says so, for the message.

    Raises:
        UserError: the variable is not set, or empty.
    """
    if value := os.environ.get(variable):
        return value
    raise UserError(f"{key}: the environment variable {variable} is not set")
