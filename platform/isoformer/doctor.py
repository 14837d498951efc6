"""Is everything here that a run needs? Installation, storage, tracking, cluster; from driver and worker.

`examine` returns one `Check` a question, each with what was found and, where it failed, how to mend it. The
command line prints them. Nothing is changed but one small object under the storage root, which is deleted.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

from isoformer.encoders.registry import Precision
from isoformer.errors import IsoformerError
from isoformer.ray_session import RayConfig, ray_session
from isoformer.storage import open_storage
from isoformer.tracking import TrackingConfig, probe

PACKAGES = ("ray", "torch", "transformers", "optuna", "mlflow", "pyarrow", "boto3", "pysam", "polars")


@dataclass(frozen=True)
class Check:
    """One question and its answer. `where` is "driver" or "worker"; `mend` is empty where all is well."""

    name: str
    where: str
    passed: bool
    found: str
    mend: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(root: str, tracking: TrackingConfig, ray: RayConfig) -> Iterator[Check]:
    """Yield every check, the cheap ones first, so that a caller can show progress."""
    yield from (_python(), _standard_library(), _packages(), _torch(), *_encoders())
    yield _storage(root, "driver")
    yield _tracking(tracking, root, "driver")
    yield from _cluster(root, tracking, ray)


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    mend = "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer and run `make install` again"
    return Check("python", "driver", not mend, version, mend)


def _standard_library() -> Check:
    import platform

    shadowed = not hasattr(platform, "machine")
    mend = "delete platform/__init__.py: it hides the standard library's module" if shadowed else ""
    return Check("standard library", "driver", not shadowed, str(platform.__file__), mend)


def _packages() -> Check:
    missing, found = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    mend = f"missing: {', '.join(missing)}; run `make install`" if missing else ""
    return Check("packages", "driver", not missing, ", ".join(found), mend)


def _torch() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("device", "driver", True, f"CUDA: {torch.cuda.get_device_name(0)}")
    threads = torch.get_num_threads()
    return Check("device", "driver", True, f"CPU, {threads} threads; no GPU in sight")


def _encoders() -> Iterator[Check]:
    """The route that transformers take on each device of this machine, found by encoding on it."""
    import torch

    yield _route("cpu", "f32")
    if torch.cuda.is_available():
        yield _route("cuda", "bf16")
        yield _route("cuda", "f32")


def _route(device: str, precision: Precision) -> Check:
    def encode_two() -> str:
        from isoformer.encoders.attention import PADDED, PER_SEQUENCE
        from isoformer.encoders.packed_encoder import PackedEncoder
        from isoformer.encoders.registry import EncoderChoice, load_encoder, load_tokenizer
        from isoformer.encoders.spec import pack

        choice = EncoderChoice(name="esm2-tiny", precision=precision)
        encoder, tokenizer = cast(PackedEncoder, load_encoder(choice, device)), load_tokenizer(choice)
        encoder.encode(pack([tokenizer("MKTAYIAK"), tokenizer("MKT")]))
        slower = {
            PADDED.name: "the padded fallback, slower: variable-length attention needs precision bf16 or f16 "
            "on a GPU of compute capability 8.0 or more",
            PER_SEQUENCE.name: "the plain layers, slower: this torch has no prepacked products for this CPU",
        }
        note = slower.get(encoder.route)
        return f"{device} {precision}: {encoder.route}" + (f" ({note})" if note else "")

    return _attempt(
        "encoders", "driver", encode_two, "install the build of torch that is made for this device"
    )


def _storage(root: str, where: str) -> Check:
    def write_read_delete() -> str:
        storage = open_storage(root)
        key, content = f".doctor/{uuid.uuid4().hex}", os.urandom(64)
        storage.write_bytes(key, content)
        try:
            if storage.read_bytes(key) != content:
                raise IsoformerError("what was read is not what was written")
        finally:
            storage.delete(key)
        return f"{root}: wrote, read and deleted an object"

    return _attempt("storage", where, write_read_delete, "check the root, its rights and AWS_ENDPOINT_URL")


def _tracking(tracking: TrackingConfig, root: str, where: str) -> Check:
    mend = "start the server, or set tracking.uri to one that answers"
    return _attempt("tracking", where, lambda: probe(tracking, root), mend)


def _cluster(root: str, tracking: TrackingConfig, ray: RayConfig) -> Iterator[Check]:
    try:
        with ray_session(ray):
            import ray as ray_module

            resources = ray_module.cluster_resources()  # type: ignore[no-untyped-call]
            amounts = {name: resources.get(name, 0) for name in ("CPU", "GPU")}
            nodes = len(ray_module.nodes())  # type: ignore[no-untyped-call]
            yield Check(
                "cluster", "driver", True, f"{nodes} node(s), {amounts['CPU']:g} CPU, {amounts['GPU']:g} GPU"
            )
            task = ray_module.remote(num_cpus=0)(_from_worker)
            yield from ray_module.get(task.remote(root, tracking), timeout=180)
    except IsoformerError as error:
        yield Check(
            "cluster", "driver", False, str(error), "check ray.address and the token (RAY_AUTH_TOKEN_PATH)"
        )
    except Exception as error:
        mend = (
            "the worker could not do its checks: is isoformer installed on the nodes, with the same version?"
        )
        yield Check("cluster", "worker", False, f"{type(error).__name__}: {_first_line(error)}", mend)


def _from_worker(root: str, tracking: TrackingConfig) -> list[Check]:
    """Runs in a Ray worker: the same answers from the other side."""
    import isoformer

    return [
        Check("package", "worker", True, f"isoformer {isoformer.__version__} in {sys.executable}"),
        _storage(root, "worker"),
        _tracking(tracking, root, "worker"),
    ]


def _attempt(name: str, where: str, action: Callable[[], str], mend: str) -> Check:
    try:
        return Check(name, where, True, action())
    except (IsoformerError, OSError, RuntimeError) as error:
        return Check(name, where, False, str(error), mend)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else ""
