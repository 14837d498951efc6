"""How fast an encoder has been seen to run, so that a plan can say how long it will take; unknown is said
as unknown.

    <root>/profile.json    {"schema_version", "layout", "startup_seconds", "costs": {"<pass>|<device>": {…}}}

`isoformer benchmark profile` times an encoder on the hardware that will run it and fits an `EncoderCost`;
every embedding run then sets that right by what it saw itself (`updated`). An entry holds for one encoder
pass, kind of device and thread count, and names the hardware it was measured on.
"""

from __future__ import annotations

import json
import platform as host
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from isoformer.documents import stored_mapping
from isoformer.embeddings.workload import Workload
from isoformer.errors import StorageError
from isoformer.schema import SCHEMA_VERSION
from isoformer.storage import Storage

# N timings, C columns of the model

PROFILE_KEY: Final = "profile.json"
LEAST_TOKENS: Final = 1000
"""A speed from fewer tokens than this says nothing."""
_LAYOUT: Final = 2
_CORRECTION: Final = (0.2, 5.0)
"""A run that was further from the model than this met something that the next one will not."""
_COLUMNS: Final = ("token", "shard", "token_pair", "sequence", "byte")
"""What costs time, in the order in which it is believed where the timings cannot tell two of them apart."""


@dataclass(frozen=True)
class EncoderCost:
    """Seconds of one encoder pass on one kind of device, with so many threads an actor.

    Linear in what a shard holds: encoding, reducing and writing it. `tokens`: measured over so many.
    `observed_over_modelled`: the last real run's seconds over this model's (contention, storage).
    `token_budget`: what was left of it after memory ran out on this hardware.
    """

    load_seconds: FiniteFloat
    seconds_per_shard: FiniteFloat
    seconds_per_sequence: FiniteFloat
    seconds_per_token: FiniteFloat
    seconds_per_token_pair: FiniteFloat
    hardware: str
    tokens: int
    observed_over_modelled: FiniteFloat = 1.0
    token_budget: int | None = None
    seconds_per_byte: FiniteFloat = 0.0

    def seconds(self, work: Workload) -> float:
        """Of one shard, on one actor that has the encoder loaded."""
        return self.observed_over_modelled * (
            self.seconds_per_shard
            + self.seconds_per_sequence * work.sequences
            + self.seconds_per_token * work.tokens
            + self.seconds_per_token_pair * work.token_pairs
            + self.seconds_per_byte * work.output_bytes
        )


@dataclass(frozen=True)
class Profile:
    """Measured costs by encoder, device and threads; seconds from a run's start to its first pack."""

    costs: Mapping[str, EncoderCost] = field(default_factory=dict)
    startup_seconds: FiniteFloat | None = None

    def cost(self, encoder: str, device: str, threads: int) -> EncoderCost | None:
        """What is known of an encoder pass on this kind of device, with this many threads an actor."""
        return self.costs.get(_key(encoder, device, threads))

    def with_cost(self, encoder: str, device: str, threads: int, cost: EncoderCost) -> Profile:
        """A copy that knows one more cost, or knows it better."""
        return replace(self, costs={**self.costs, _key(encoder, device, threads): cost})


def read_profile(storage: Storage) -> Profile:
    """What was measured for this root; empty where nothing was, or in an older layout.

    StorageError where the file is damaged; it may be deleted, since the next run measures anew.
    """
    if not storage.exists(PROFILE_KEY):
        return Profile()
    data = stored_mapping(storage, PROFILE_KEY)
    if (data.get("schema_version"), data.get("layout")) != (SCHEMA_VERSION, _LAYOUT):
        return Profile()
    try:
        return TypeAdapter(Profile).validate_python(
            {name: data[name] for name in ("costs", "startup_seconds")}
        )
    except (ValidationError, KeyError) as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else error
        raise StorageError(
            f"{storage.uri}/{PROFILE_KEY}: {where} is not as measured; delete the file"
        ) from None


def write_profile(storage: Storage, profile: Profile) -> None:
    data = {"schema_version": SCHEMA_VERSION, "layout": _LAYOUT, **asdict(profile)}
    storage.write_bytes(PROFILE_KEY, json.dumps(data, indent=1, sort_keys=True).encode())


def fit(timings: Sequence[tuple[Workload, float]], *, load_seconds: float, hardware: str) -> EncoderCost:
    """The non-negative cost that comes nearest to what shards took, (workload, seconds) each.

    Least squares of relative errors. What the timings cannot tell apart (all sequences of one length, fewer
    than two timings to a coefficient) is put down to tokens first. ValueError where there are no tokens.
    """
    from scipy.optimize import nnls

    used = [(work, seconds) for work, seconds in timings if work.tokens]
    if not used:
        raise ValueError("fit needs timings of at least one token")
    seconds_N = np.array([seconds for _, seconds in used])
    columns_NC = np.array([_columns(work) for work, _ in used]) / seconds_N[:, None]
    scales_C = np.linalg.norm(columns_NC, axis=0)
    chosen = _told_apart(columns_NC / np.where(scales_C > 0, scales_C, 1.0), most=max(1, len(used) // 2))
    coefficients_C = np.zeros(len(_COLUMNS))
    scaled_NC = columns_NC[:, chosen] / scales_C[chosen]
    coefficients_C[chosen] = nnls(scaled_NC, np.ones(len(used)))[0] / scales_C[chosen]
    by_column = dict(zip(_COLUMNS, coefficients_C.tolist(), strict=True))
    return EncoderCost(
        load_seconds=load_seconds,
        seconds_per_shard=by_column["shard"],
        seconds_per_sequence=by_column["sequence"],
        seconds_per_token=by_column["token"],
        seconds_per_token_pair=by_column["token_pair"],
        hardware=hardware,
        tokens=sum(work.tokens for work, _ in used),
        seconds_per_byte=by_column["byte"],
    )


def updated(
    profile: Profile,
    encoder: str,
    device: str,
    threads: int,
    timings: Sequence[tuple[Workload, float]],
    *,
    hardware: str,
    load_seconds: float = 0.0,
    token_budget: int | None = None,
) -> Profile:
    """A profile that has learned from a run: what each shard held and how long its actor took over it.

    A cost that was measured on this hardware is corrected by one factor; any other is made from the timings.
    A run of fewer than `LEAST_TOKENS` teaches nothing. `token_budget`: given where memory ran out.
    """
    if sum(work.tokens for work, _ in timings) < LEAST_TOKENS:
        return profile
    known = profile.cost(encoder, device, threads)
    if known is None or known.hardware != hardware:
        cost = fit(timings, load_seconds=load_seconds, hardware=hardware)
    else:
        uncorrected = replace(known, observed_over_modelled=1.0)
        modelled = sum(uncorrected.seconds(work) for work, _ in timings)
        ratio = sum(seconds for _, seconds in timings) / modelled if modelled else 1.0
        cost = replace(known, observed_over_modelled=float(np.clip(ratio, *_CORRECTION)))
    if token_budget is not None:
        cost = replace(cost, token_budget=token_budget)
    return profile.with_cost(encoder, device, threads, cost)


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


def _key(encoder: str, device: str, threads: int) -> str:
    return f"{encoder}|{device}-{threads}" if device == "cpu" else f"{encoder}|{device}"


def _columns(work: Workload) -> tuple[float, ...]:
    """How often each of `_COLUMNS` is paid."""
    sequences, tokens, token_pairs, output_bytes = astuple(work)
    return tokens, 1, token_pairs, sequences, output_bytes


def _told_apart(unit_NC: NDArray[np.float64], *, most: int, least_part: float = 0.02) -> list[int]:
    """The columns that are not all but a mixture of those before them: a part of each is its own."""
    chosen: list[int] = []
    basis: list[NDArray[np.float64]] = []
    for index in range(unit_NC.shape[1]):
        rest_N = unit_NC[:, index].copy()
        for direction_N in basis:
            rest_N -= (rest_N @ direction_N) * direction_N
        part = float(np.linalg.norm(rest_N))
        if part > least_part and len(chosen) < most:
            chosen.append(index)
            basis.append(rest_N / part)
    return chosen
