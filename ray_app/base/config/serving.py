"""Config sections of serving."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ray_app.base.config.credentials import secret_part
from ray_app.base.config.section import Fraction, PositiveInt, Section

_IMAGE_HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d{1,5})?")  # goes into a header


class CacheConfig(Section):
    """Cache of query embeddings."""

    max_entries: Annotated[int, Field(ge=0)] = 100_000
    """Maximum entries per replica; 0 disables it. A 384-dimensional query embedding takes some 2 kB."""
    ttl_sec: Annotated[float, Field(gt=0)] = 86_400.0
    redis_url: str | None = None
    """`redis://host:6379/0`: a second level that replicas share, skipped while unavailable. Options of redis-py may follow:
    `rediss://host:6379/0?ssl_ca_certs=/etc/ca.pem&username=app`."""
    redis_password_env: str | None = None
    """Name of the environment variable with its password; None: no password."""
    redis_key_env: str | None = None
    """Name of the environment variable with a secret, the same for all replicas, by which queries are hashed (HMAC) into keys,
    so that the keys do not reveal queries. Without one there is no second level."""

    @field_validator("redis_url")
    @classmethod
    def _is_an_address_alone(cls, url: str | None) -> str | None:
        if url is None:
            return url
        if not url.startswith(("redis://", "rediss://")):
            raise ValueError(
                "write it as redis://HOST:PORT/DB or rediss://HOST:PORT/DB, with ?username=NAME if there is a user"
            )
        part = "the user info before @" if "@" in url.partition("?")[0] else secret_part(url)
        if part is not None:
            raise ValueError(
                f"credentials ({part}) do not belong in it: set redis_password_env to the name of an environment variable, and "
                "write a user as ?username=NAME"
            )
        return url

    @model_validator(mode="after")
    def _queries_are_hashed(self) -> "CacheConfig":
        if self.redis_url is not None and self.redis_key_env is None:
            raise ValueError(
                "redis_url needs redis_key_env, the name of an environment variable with a secret (`openssl rand -hex 32`): "
                "queries are hashed by it, which others could else read or guess"
            )
        return self


class ServeLimits(Section):
    """Request limits, admission control and load shedding."""

    max_query_chars: PositiveInt = 500
    max_queries: PositiveInt = 64
    """Maximum queries per encode request."""
    max_candidates: PositiveInt = 1000
    """Maximum candidates per rerank request."""
    max_body_bytes: PositiveInt = 256_000
    max_concurrent_requests: PositiveInt = 64
    """Maximum concurrent requests per replica; more are answered 429 with Retry-After."""
    max_concurrent_open_requests: PositiveInt = 16
    """The same for the page and images, which need no token and do not count towards `max_concurrent_requests`."""
    max_waiting_queries: PositiveInt = 512
    """Maximum queries per replica that wait to be encoded; beyond it an encode request is answered 429 with Retry-After."""
    deadline_ms: PositiveInt = 1000
    """A request that takes longer is answered 503; header X-Deadline-Ms shortens it, to 50 at the least."""
    encoder_timeout_ms: PositiveInt = 200
    """Milliseconds to wait for a query embedding; after that the query is ranked by BM25 and features alone (`degraded` in the answer)."""

    @model_validator(mode="after")
    def _one_request_can_wait(self) -> "ServeLimits":
        if self.max_waiting_queries < self.max_queries:
            raise ValueError(
                f"max_waiting_queries: {self.max_waiting_queries} is less than max_queries, {self.max_queries}: a request of "
                "so many queries could never be answered"
            )
        return self


class BlendConfig(Section):
    """Blending of relevance and engagement into one ranking."""

    engagement_weight: Annotated[float, Field(ge=0)] = 0.15
    """Grades that a pin with the best engagement gains over one with none; guessed, tune it by experiment."""
    min_score: Annotated[float, Field(ge=1, le=5)] = 1.0
    """Minimum expected grade of a result."""


class ServeConfig(Section):
    """The online app."""

    query_encoder_backend: Literal["auto", "compiled_bf16", "onnx", "torch", "torch_bf16"] = "auto"
    """Backend that embeds queries; `auto`: the fastest on this machine among those within `min_backend_cosine` of float32."""
    min_backend_cosine: Fraction = 0.995
    cpu_threads: PositiveInt = 1
    """Threads of the query encoder per replica."""
    shards: PositiveInt = 1
    """Number of shards, one process each, for catalogues that do not fit into one; 1: each replica holds all pins."""
    max_batch_size: PositiveInt = 32
    """Maximum queries per encoder batch (dynamic batching)."""
    embedding_dtype: Literal["float16", "int8"] = "float16"
    """Data type of pin embeddings in memory-mapped files."""
    local_cache_dir: str | None = None
    """Folder for files built from a release (mapped embeddings, indexes, native code); None: the user's cache folder.
    It must not be writable by other users."""
    poll_interval_sec: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two checks of CURRENT for another release."""
    bm25_top_k: PositiveInt = 200
    dense_top_k: PositiveInt = 200
    rerank_top_k: PositiveInt = 300
    """Maximum candidates of both together that are reranked."""
    cache: CacheConfig = CacheConfig()
    limits: ServeLimits = ServeLimits()
    blend: BlendConfig = BlendConfig()
    auth_token_env: str | None = None
    """Name of the environment variable with the bearer token that requests must carry; None: no authentication."""
    allow_hosts: list[str] | None = None
    """Host names that the app accepts (header Host), without ports; health checks may use any. None: any name if
    there is a token; else those of this machine (localhost, 127.0.0.1, ::1), since a page that a user visits may give its own
    name this machine's address and read what needs no token."""
    image_hosts: list[str] = []
    """Hosts from which the page may load images, `cdn.example.org` or `*.example.org`: they see the address of every user
    who searches. Images that this app reads itself need none."""
    log_queries: bool = False
    """Write query texts into the access log."""

    def answered_hosts(self) -> list[str] | None:
        """Host names that the app accepts; None: any."""
        if self.allow_hosts is None and self.auth_token_env is None:
            return ["localhost", "127.0.0.1", "::1"]
        return self.allow_hosts

    @field_validator("image_hosts")
    @classmethod
    def _plain_hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not _IMAGE_HOST.fullmatch(host):
                raise ValueError(
                    f"{host!r} is no host such as cdn.example.org or *.example.org, without scheme and path"
                )
        return hosts
