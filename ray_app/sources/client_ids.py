"""Client ids of the search log, hashed: distinct clients can be counted, but not identified.

An id is what the log says. Where browsers write the log themselves (UBI), whoever forges events forges ids too: a site that
wants the count of clients to mean something has its collector set the id, from an account, a signed cookie or an address.
"""

import hashlib
from typing import Any

from ray_app.base.config import IngestConfig
from ray_app.base.config.credentials import read_secret
from ray_app.sources.rows import is_utf8

MIN_KEY_CHARS = 16
_PERSON = b"client"  # the same id, hashed for something else, gives another hash


def client_key(cfg: IngestConfig) -> bytes:
    """The secret of `ingest.client_key_env`; empty: ids are hashed without one.

    Raises:
        UserError: the variable is not set, or too short to be a secret.
    """
    if cfg.client_key_env is None:
        return b""
    secret = read_secret(cfg.client_key_env, "ingest.client_key_env", MIN_KEY_CHARS)
    return hashlib.blake2b(secret.encode(), digest_size=32).digest()


def client_id_of(value: Any) -> str | None:
    """The id that a log gives, of any length (some collectors send tokens); None: it gives none, or what can be none.

    Whole numbers are ids, also as the floats that pandas makes of a column with gaps, as long as those are exact.
    """
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if type(value) is int:
        value = str(value)
    is_id = isinstance(value, str) and value and not value.isspace() and is_utf8(value)
    return value if is_id else None


def hash_client(client_id: str, key: bytes) -> str:
    """32 hex digits. Without a key whoever knows an id knows its hash too, and may find the id of a hash by trying ids."""
    data = client_id.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16, key=key, person=_PERSON).hexdigest()
