"""No secret is part of a configuration, which is stored in manifests and releases, printed in reports, and shown in errors.

A key ending in `_env` names the environment variable that holds one.
"""

import os
import re
from typing import Any
from urllib.parse import unquote_plus

from ray_app.base.errors import UserError

_AUTHORITY = re.compile(r"(?:^|(?<=:))//([^/?#]*)")
_IPV6 = re.compile(r"^\[[^\]]*\]")
_NAME_ALONE_IS_SECRET = ("http:", "https:", "redis:", "rediss:", "s3:")  # others' users are containers, or `anonymous`
_WORDS_MEET = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_SECRET = re.compile(r"(page|next|continuation)_?token")  # page position of a listing
# Matched against a parameter's name in lower case, words separated by `_`.
_SECRET = re.compile(
    r"(passw(or)?d|passphrase|pwd|secret|token|credentials?|signature|authorization"
    r"|(api|access|account|shared|private|secret|signing)_?key(_?id)?)(?![a-z])|^(sig|auth|key)$"
)
_SWITCHES = ("", "0", "1", "true", "false", "yes", "no", "on", "off", "none")  # `auth=1` is a switch, not a secret


def secret_part(text: str) -> str | None:
    """Describe where a URL in a text holds credentials, without showing them; None: nowhere.

    What a password with an odd character in it leaves, which is another URL or none, counts too. Linear in the text's length
    but for URLs within URLs.
    """
    last_at = text.rfind("@")
    found = list(_AUTHORITY.finditer(text))
    for url in found:
        user, at, _ = url[1].rpartition("@")
        scheme = text[max(0, url.start() - 7) : url.start()].lower()
        name_is_secret = not scheme or scheme.endswith(_NAME_ALONE_IS_SECRET)
        # The second: `user:12/34@host` is the host `user` and its port 12 to whoever reads URLs.
        is_password = ":" in user or (":" in _IPV6.sub("", url[1]) and url.end() <= last_at)
        if is_password or (at and user and name_is_secret):
            return "the user info before @"
    options = re.split("[?#&;]+", text[found[0].end() :])[1:] if found else []
    for name, _, value in (option.partition("=") for option in options):
        words = _NO_SECRET.sub("", _WORDS_MEET.sub("_", unquote_plus(name)).lower()).strip("_")
        value = unquote_plus(value)
        if (secret := _SECRET.search(words)) and not (secret[0] == "auth" and value.lower() in _SWITCHES):
            return f"a parameter with {secret[0]} in its name"
        if "//" in value and (inner := secret_part(value)):
            return inner
    return None


def keys_with_credentials(tree: Any, key: str = "") -> list[tuple[str, str]]:
    """Keys of a configuration, such as `serve.cache.redis_url`, whose values hold credentials, and the `secret_part` of each."""
    if isinstance(tree, dict):
        parts = [(f"{key}.{name}" if key else str(name), value) for name, value in tree.items()]
    elif isinstance(tree, list):
        parts = [(f"{key}.{i}", value) for i, value in enumerate(tree)]
    else:
        return [(key, part)] if isinstance(tree, str) and (part := secret_part(tree)) else []
    return [found for name, value in parts for found in keys_with_credentials(value, name)]


def read_secret(variable: str, key: str, min_chars: int = 1) -> str:
    """Read a secret from the environment.

    Raises:
        UserError: the variable is not set, empty or too short.
    """
    value = os.environ.get(variable, "")
    if value and len(value) >= min_chars:
        return value
    state = f"has fewer than {min_chars} characters" if value else "is not set"
    advice = "; `openssl rand -hex 32` makes one, which must stay the same" if min_chars > 1 else ""
    raise UserError(f"{key}: the environment variable {variable} {state}{advice}")
