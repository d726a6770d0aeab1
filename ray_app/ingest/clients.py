"""Who did what in the search log: a hash of the client's id, so that distinct clients can be counted and nobody be named.

An id is what the log says. Where browsers write the log themselves (UBI), whoever forges events forges ids too: a site that
wants the count of clients to mean something has its collector set the id, from an account, a signed cookie or an address.
"""

import hashlib
import os

from ray_app.config import IngestConfig
from ray_app.errors import UserError

MIN_KEY_CHARS = 16
_PERSON = b"client"  # the same id, hashed for something else, gives another hash


def client_key(cfg: IngestConfig) -> bytes:
    """The secret of `ingest.client_key_env`; empty: ids are hashed without one.

    Raises:
        UserError: the variable is not set, or too short to be a secret.
    """
    name = cfg.client_key_env
    if name is None:
        return b""
    secret = os.environ.get(name, "")
    if len(secret) < MIN_KEY_CHARS:
        state = "is not set" if not secret else f"has fewer than {MIN_KEY_CHARS} characters"
        raise UserError(
            f"ingest.client_key_env: the environment variable {name} {state}; set it to a secret, such as the output of "
            "`openssl rand -hex 32`, and keep it: with another one every visitor is a new client"
        )
    return hashlib.blake2b(secret.encode(), digest_size=32).digest()


def hash_client(client_id: str, key: bytes) -> str:
    """32 hex digits. Without a key whoever knows an id knows its hash too, and may find the id of a hash by trying ids."""
    data = client_id.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16, key=key, person=_PERSON).hexdigest()
