"""Where Ray Train keeps its own state: under the root, for every node to see, with the root's encryption."""

from __future__ import annotations

from typing import Any

from isoformer.storage import S3Storage, Storage


def ray_storage(storage: Storage, folder: str) -> tuple[str, Any]:
    """(path, file system) as `ray.train.RunConfig` takes them, for a folder under the root."""
    if not isinstance(storage, S3Storage):
        return f"{storage.uri}/{folder}", None
    path = "/".join(part for part in (storage.bucket, storage.prefix, folder) if part)
    if storage.encryption:
        from isoformer.s3_files import s3_file_system

        return path, s3_file_system(storage)
    from pyarrow import fs

    retries = fs.AwsStandardS3RetryStrategy(max_attempts=8)
    return path, fs.S3FileSystem(endpoint_override=storage.endpoint, retry_strategy=retries)
