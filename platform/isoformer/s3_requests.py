"""A request to S3, tried until it is answered: what is worth another try, for how long, and what is told.

botocore's own retries are switched off: they do not cover a body that breaks off, and do not say how often
they tried. Here every failure that may pass (throttling, 5xx, a conditional put in conflict, a connection or
a body that broke) is tried again after a random wait that may double each time, at most `ATTEMPTS` times
(AWS_MAX_ATTEMPTS where set) and never begun after `DEADLINE_SECONDS`. Called by `storage.S3Storage` only.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from isoformer.errors import StorageError

ATTEMPTS: Final = 8
DEADLINE_SECONDS: Final = 300.0
CONNECT_TIMEOUT_SECONDS: Final = 10
READ_TIMEOUT_SECONDS: Final = 60
"""How long a socket may stay silent; a transfer that goes on, however slowly, is left alone."""
BACKOFF_SECONDS: Final = 0.25
BACKOFF_LIMIT_SECONDS: Final = 20.0
SKEW_SECONDS: Final = 900
"""S3 refuses a request that is signed with a time further off than this."""
_PASSING_STATUS: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
_PASSING_CODES: Final = frozenset({
    "BadDigest", "IncompleteBody", "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException",
    "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch",
})  # fmt: skip
"""Refusals that S3 and its likes send as 400, though the next attempt may pass."""

T = TypeVar("T")


class BrokenBodyError(Exception):
    """An object's bytes broke off, or are not the ones that were stored."""


class RangeReader(io.RawIOBase):
    """A read-only file over `read_range(start, end)`, for `pyarrow.PythonFile`."""

    def __init__(self, size_bytes: int, read_range: Callable[[int, int], bytes]) -> None:
        self._size_bytes, self._read_range, self._at = size_bytes, read_range, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + (0, self._at, self._size_bytes)[whence]
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size_bytes - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._read_range(self._at, self._at + wanted) if wanted else b""
        self._at += len(data)
        return data


def s3_client(endpoint: str | None) -> Any:
    """A client that sends each request once. Credentials and region are found as boto3 finds them."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
    )
    session = boto3.session.Session()
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)


def retried(call: Callable[[], T], failed: str, bucket: str, endpoint: str | None) -> T:
    """What `call` returns, tried again where its failure may pass.

    StorageError, which begins with `failed` and says how often it was tried and why it failed last.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    allowed, begun, attempt = _attempts_allowed(), time.monotonic(), 0
    while True:
        attempt += 1
        try:
            return call()
        except (
            BotoCoreError, ClientError, ResponseParserError, HTTPError, BrokenBodyError, OSError, ValueError,
        ) as error:  # fmt: skip
            seconds = time.monotonic() - begun
            wait = random.uniform(0, min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2 ** (attempt - 1)))
            if not _may_pass(error) or attempt >= allowed or seconds + wait > DEADLINE_SECONDS:
                tried = f"tried {attempt} times in {seconds:.0f} s: " if attempt > 1 else ""
                raise StorageError(f"{failed}: {tried}{_reason(error, bucket, endpoint)}") from None
        time.sleep(wait)


def whole_body(response: Any) -> bytes:
    """The body of a `get_object`, its length and its checksum (where the server keeps one) verified."""
    return b"".join(body_chunks(response, -1))


def body_chunks(response: Any, chunk_bytes: int) -> Iterator[bytes]:
    """The body in chunks; BrokenBodyError, at the latest at its end, where it broke off or is damaged.

    An error of its own, since some of botocore's are OSErrors and would look like the local disk's.
    """
    from botocore.exceptions import BotoCoreError
    from urllib3.exceptions import HTTPError

    body = response["Body"]
    try:
        if chunk_bytes < 0:
            yield body.read()
        else:
            yield from body.iter_chunks(chunk_bytes)
    except (BotoCoreError, HTTPError, OSError) as error:
        raise BrokenBodyError(type(error).__name__) from None


def status_of(error: Any) -> int:
    """The HTTP status of a ClientError."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _attempts_allowed() -> int:
    text = os.environ.get("AWS_MAX_ATTEMPTS", str(ATTEMPTS))
    if not text.isdecimal() or int(text) < 1:
        raise StorageError(f"AWS_MAX_ATTEMPTS is {text!r}; allowed: a whole number from 1")
    return int(text)


def _may_pass(error: Exception) -> bool:
    from botocore import exceptions as s3
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, s3.ClientError):
        return status_of(error) in _PASSING_STATUS or _code(error) in _PASSING_CODES
    broken = (s3.ConnectionError, s3.HTTPClientError, ResponseParserError, HTTPError, BrokenBodyError)
    return isinstance(error, broken)


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _reason(error: Exception, bucket: str, endpoint: str | None) -> str:
    """Why, and what to do, from the kind of failure only: server texts can hold keys."""
    from botocore import exceptions as s3
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    where = f"the S3 endpoint {_without_user(endpoint)}" if endpoint else "AWS S3"
    if isinstance(error, s3.NoCredentialsError | s3.PartialCredentialsError):
        return "no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, s3.ReadTimeoutError):
        return f"{where} sent nothing for {READ_TIMEOUT_SECONDS} s"
    if isinstance(error, s3.EndpointConnectionError | s3.ConnectTimeoutError):
        return f"{where} cannot be reached; check AWS_ENDPOINT_URL, the network and that the server runs"
    if isinstance(error, s3.ConnectionError | s3.HTTPClientError | HTTPError):
        return f"{where} broke the connection ({type(error).__name__}); check the network and the server"
    if isinstance(error, BrokenBodyError | ResponseParserError):
        return f"{where} sent an answer that broke off or is damaged; check the network and the server"
    if isinstance(error, s3.ClientError):
        off = _clock_is_off(error)
        return off or _refusal(_code(error), status_of(error), bucket, where)
    if isinstance(error, ValueError):
        return f"the settings for {where} are not valid; check AWS_ENDPOINT_URL and AWS_REGION"
    return f"{type(error).__name__} from {where}"


def _clock_is_off(error: Any) -> str | None:
    """What to say where a request was refused because of the time that it was signed with. An answer without
    a body (to HEAD) has only its date to tell that by.
    """
    if status_of(error) != 403:
        return None
    date = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    ahead = time.time() - parsedate_to_datetime(date).timestamp() if date else 0.0
    if _code(error) != "RequestTimeTooSkewed" and abs(ahead) < SKEW_SECONDS:
        return None
    by = f" by {timedelta(seconds=round(abs(ahead)))}" if abs(ahead) >= 1 else ""
    return f"this machine's clock is wrong{by}, and S3 refuses what is signed with it; set the clock (NTP)"


def _refusal(code: str, status: int, bucket: str, where: str) -> str:
    if code == "NoSuchBucket":
        return f"{where} has no bucket {bucket!r}; create it, or correct the name"
    if code in ("NoSuchKey", "404") or status == 404:
        return f"there is no such object, or no bucket {bucket!r}, at {where}"
    if code.startswith("KMS."):
        return (
            f"{where} cannot use the key that objects are encrypted with ({code}); check ISOFORMER_S3_KMS_KEY"
        )
    if status in (401, 403) or code in ("ExpiredToken", "InvalidToken"):
        return (
            f"{where} refused the credentials ({code or status}); check AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and that they may read and write bucket {bucket!r}"
        )
    if status == 412:
        return "another object took its place while it was read; run again"
    return f"{where} answered {status}" + (f" {code}" if code != str(status) else "")


def _without_user(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
