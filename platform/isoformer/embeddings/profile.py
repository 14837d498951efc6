"""How fast an encoder has been seen to run, so that a plan can say how long it will take; unknown is said
as unknown.

    <root>/profile.json    {"schema_version", "startup_seconds", "encoders": {"<encoder>|<device>": {…}}}

Every embedding run writes what it measured; `calibrate` measures an encoder for a few seconds
beforehand. An entry holds for one encoder, kind of device and thread count, and names the hardware it
was measured on.
"""

from __future__ import annotations

import json
import platform as host
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final

from isoformer.embeddings.config import EmbedConfig, EncoderGroup
from isoformer.embeddings.encode import encode_shard
from isoformer.embeddings.shard_sequences import TokenizedShard
from isoformer.encoders.registry import load_encoder
from isoformer.encoders.spec import Encoder
from isoformer.schema import SCHEMA_VERSION
from isoformer.storage import Storage

PROFILE_KEY: Final = "profile.json"
_LEAST_TOKENS: Final = 1000
"""A rate from fewer tokens than this says nothing."""
_CALIBRATION_SECONDS: Final = 2.0


@dataclass(frozen=True)
class EncoderRate:
    """Tokens encoded, reduced and written in a second by one actor, and on what that was measured."""

    tokens_per_second: float
    tokens: int
    hardware: str


@dataclass(frozen=True)
class Profile:
    """Measured rates by encoder, device and threads; seconds from a run's start to its first token."""

    encoders: Mapping[str, EncoderRate] = field(default_factory=dict)
    startup_seconds: float | None = None

    def rate(self, encoder: str, device: str, threads: int) -> EncoderRate | None:
        """What is known of an encoder on this kind of device, with this many threads an actor."""
        return self.encoders.get(_rate_key(encoder, device, threads))

    def with_rate(self, encoder: str, device: str, threads: int, rate: EncoderRate) -> Profile:
        """A copy that knows one more rate; one from too few tokens does not replace what is known."""
        key = _rate_key(encoder, device, threads)
        if rate.tokens < _LEAST_TOKENS and key in self.encoders:
            return self
        return replace(self, encoders={**self.encoders, key: rate})


def read_profile(storage: Storage) -> Profile:
    """What earlier runs on this root measured; empty where there was none."""
    if not storage.exists(PROFILE_KEY):
        return Profile()
    data = json.loads(storage.read_bytes(PROFILE_KEY))
    if data.get("schema_version") != SCHEMA_VERSION:
        return Profile()
    return Profile(
        {key: EncoderRate(**rate) for key, rate in data["encoders"].items()}, data["startup_seconds"]
    )


def write_profile(storage: Storage, profile: Profile) -> None:
    data = {"schema_version": SCHEMA_VERSION, **asdict(profile)}
    storage.write_bytes(PROFILE_KEY, json.dumps(data, indent=1, sort_keys=True).encode())


def calibrate(config: EmbedConfig, group: EncoderGroup, sample: TokenizedShard, threads: int) -> EncoderRate:
    """Load an encoder here and run it over evenly spread parts of a shard for about two seconds."""
    import torch

    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encoder = load_encoder(group.choice, config.device)
        tokens, seconds = _timed(encoder, sample, config, list(group.keys))
    finally:
        torch.set_num_threads(threads_before)
    return EncoderRate(tokens / seconds, tokens, hardware(config.device))


def _timed(
    encoder: Encoder, sample: TokenizedShard, config: EmbedConfig, resolutions: list[str]
) -> tuple[int, float]:
    budget = config.budget()
    longest = int(sample.lengths().argmax())
    encode_shard(
        encoder, sample.part([longest]), resolutions, config.dtype, budget
    )  # warm up on the worst case
    stride = max(1, len(sample.digests) // 32)
    tokens, started = 0, time.perf_counter()
    for start in range(stride):
        part = sample.part(range(start, len(sample.digests), stride))
        encode_shard(encoder, part, resolutions, config.dtype, budget)
        tokens += int(part.lengths().sum())
        if time.perf_counter() - started > _CALIBRATION_SECONDS:
            break
    return tokens, time.perf_counter() - started


def _rate_key(encoder: str, device: str, threads: int) -> str:
    return f"{encoder}|{device}-{threads}" if device == "cpu" else f"{encoder}|{device}"


@cache
def hardware(device: str) -> str:
    """The processor or accelerator of this machine, in words."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x{len(names)}" if names else host.processor() or host.machine()
