"""What the environment says of S3, read once, when a storage is opened: the endpoint and the encryption.

    AWS_ENDPOINT_URL           another server than AWS; without user name and password
    ISOFORMER_S3_ENCRYPTION    AES256 or aws:kms: asked for with every object that is written
    ISOFORMER_S3_KMS_KEY       the key of aws:kms; without it, the bucket's or the account's own

`ray_session` hands the last two on to workers on other nodes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from isoformer.errors import StorageError
from isoformer.plain_text import warn_of_plain_text

ENDPOINT: Final = "AWS_ENDPOINT_URL"
ENCRYPTION: Final = "ISOFORMER_S3_ENCRYPTION"
KMS_KEY: Final = "ISOFORMER_S3_KMS_KEY"
_KINDS: Final = ("AES256", "aws:kms")


def s3_endpoint() -> str | None:
    """The server's address; None for AWS. StorageError where it holds credentials."""
    endpoint = os.environ.get(ENDPOINT) or None
    if endpoint is None:
        return None
    if "@" in urlsplit(endpoint).netloc:
        raise StorageError(
            f"{ENDPOINT} must hold no user name and no password; give credentials as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or in a profile"
        )
    warn_of_plain_text(ENDPOINT, endpoint, "all that is stored or read can be seen and changed on the way")
    return endpoint


def s3_encryption() -> dict[str, str]:
    """What every put asks for, as boto3's arguments; empty where nothing is asked for."""
    kind, key = os.environ.get(ENCRYPTION), os.environ.get(KMS_KEY)
    if kind and kind not in _KINDS:
        raise StorageError(f"{ENCRYPTION} is {kind!r}; allowed: {', '.join(_KINDS)}")
    if key and kind != "aws:kms":
        raise StorageError(f"{KMS_KEY} goes with {ENCRYPTION}=aws:kms alone")
    asked = {"ServerSideEncryption": kind, "SSEKMSKeyId": key}
    return {name: value for name, value in asked.items() if value}


def require_encrypted(answer: Mapping[str, Any], asked: Mapping[str, str], uri: str) -> None:
    """StorageError where a server took an object and did not encrypt it as it was asked to."""
    kind = asked.get("ServerSideEncryption")
    if kind and answer.get("ServerSideEncryption") != kind:
        raise StorageError(
            f"{uri}: was written, but the server does not say that it encrypted it with {kind}: it lies "
            f"there in plain; use a server that encrypts, or unset {ENCRYPTION}"
        )
