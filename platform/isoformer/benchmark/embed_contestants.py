"""What the engine is timed against, each in a process of its own: `python -m … NAME JOB.json OUTPUT`.

    loop      our packed encoder over the shards' packs, one process; arrays stay in memory, nothing is stored
    script    the library's model on batches of 8, padded, in the file's order; one file at the end
    ray_data  Ray Data: rows → tokenise → our packed encoder in an actor → write_parquet

Each prints one JSON object: `seconds` from its first batch to its end, `loading_seconds` before that. What
it made stays under OUTPUT for the comparison, in float16. The script and Ray Data write within their time,
the loop after it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from isoformer.benchmark.engine_inputs import Row, Vectors
from isoformer.benchmark.sequences import token_budget_packs
from isoformer.encoders.registry import EncoderChoice, load_encoder, load_tokenizer
from isoformer.encoders.resolution import reduce
from isoformer.encoders.spec import Encoder, Tokenized, pack

# B sequences, L positions of one sequence, D width

SCRIPT_BATCH: Final = 8
RAY_DATA_ROWS: Final = 16
STORED: Final = np.dtype("<f2")


@dataclass(frozen=True)
class Job:
    """What a contestant is told; `rows` in the file's order."""

    choice: EncoderChoice
    resolution: str
    device: str
    threads: int
    token_budget: int
    rows: tuple[Row, ...]

    def write(self, file: Path) -> Path:
        data = {**asdict(self), "choice": self.choice.model_dump()}
        file.write_text(json.dumps(data), encoding="utf-8")
        return file

    @classmethod
    def read(cls, file: Path) -> Job:
        data = json.loads(file.read_text(encoding="utf-8"))
        rows = tuple(Row(**row) for row in data["rows"])
        return cls(**{**data, "choice": EncoderChoice(**data["choice"]), "rows": rows})

    def tokenised(self) -> list[Tokenized]:
        tokenizer = load_tokenizer(self.choice)
        return [tokenizer(row.protein) for row in self.rows]


def loop(job: Job, output: Path) -> dict[str, float]:
    """The least that has to be done: encode, reduce, round."""
    started = time.perf_counter()
    encoder, tokenised = _our_encoder(job), job.tokenised()
    shards = [
        [place for place, row in enumerate(job.rows) if row.shard == shard]
        for shard in sorted({row.shard for row in job.rows})
    ]
    loaded = time.perf_counter()
    kept: Vectors = {}
    for places in shards:
        packed = token_budget_packs([len(tokenised[place]) for place in places], job.token_budget)
        for members in packed:
            chosen = [places[member] for member in members]
            arrays = _encoded(encoder, [tokenised[place] for place in chosen], job.resolution)
            kept |= {job.rows[place].digest: values for place, values in zip(chosen, arrays, strict=True)}
    seconds = time.perf_counter() - loaded
    _save(output, kept)
    return {"seconds": seconds, "loading_seconds": loaded - started}


def script(job: Job, output: Path) -> dict[str, float]:
    """What a user would write."""
    import torch
    from transformers import BatchEncoding

    from isoformer.benchmark.library import library_model

    started = time.perf_counter()
    model = library_model(job.choice, job.device)
    tokenised = job.tokenised()
    loaded = time.perf_counter()
    kept: Vectors = {}
    for start in range(0, len(tokenised), SCRIPT_BATCH):
        rows, batch = job.rows[start : start + SCRIPT_BATCH], tokenised[start : start + SCRIPT_BATCH]
        inputs = BatchEncoding(_padded(batch), tensor_type="pt").to(job.device)
        with torch.no_grad():
            states_BLD = model(**inputs).last_hidden_state
        is_residue_BL = inputs["attention_mask"].clone()
        is_residue_BL[:, 0] = 0
        is_residue_BL[torch.arange(len(batch)), [len(one) - 1 for one in batch]] = 0
        if job.resolution == "tokens":
            arrays = [
                states_LD[mask_L.bool()] for states_LD, mask_L in zip(states_BLD, is_residue_BL, strict=True)
            ]
        else:
            weight_BL1 = is_residue_BL.unsqueeze(-1).to(states_BLD.dtype)
            arrays = list(((states_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)).unsqueeze(1))
        kept |= {row.digest: values.half().cpu().numpy() for row, values in zip(rows, arrays, strict=True)}
    _save(output, kept)
    return {"seconds": time.perf_counter() - loaded, "loading_seconds": loaded - started}


def ray_data(job: Job, output: Path) -> dict[str, float]:
    """What a careful user of Ray Data would write: no padding, one actor with all threads."""
    from isoformer.ray_session import RayConfig, quiet_ray_data, ray_session

    started = time.time()
    output.mkdir()
    first_batch = output.with_suffix(".started")
    with ray_session(RayConfig()), quiet_ray_data():
        import ray.data

        task: Any = tokenise_rows  # Ray Data's types know no keyword arguments
        actor: Any = EncodeRows
        on_gpu = job.device == "cuda"
        dataset = ray.data.from_items(
            [asdict(row) for row in job.rows], override_num_blocks=len({row.shard for row in job.rows})
        )
        tokenised = dataset.map_batches(task, fn_kwargs={"choice": job.choice})
        encoded = tokenised.map_batches(
            actor,
            fn_constructor_kwargs={"job": _without_rows(job), "first_batch": str(first_batch)},
            batch_size=RAY_DATA_ROWS,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0 if on_gpu else 1,
            num_gpus=1 if on_gpu else 0,
        )
        encoded.write_parquet(str(output))
        ended = time.time()
    first = float(first_batch.read_text(encoding="utf-8"))
    return {"seconds": ended - first, "loading_seconds": first - started}


def tokenise_rows(batch: dict[str, Any], choice: EncoderChoice) -> dict[str, Any]:
    """A task's work: token ids as raw bytes beside the digest."""
    tokenizer = load_tokenizer(choice)
    token_ids = [tokenizer(str(protein)).token_ids.tobytes() for protein in batch["protein"]]
    return {"digest": batch["digest"], "token_ids": token_ids}


class EncodeRows:
    """An actor's work; says in a file when its first batch came."""

    def __init__(self, job: Job, first_batch: str) -> None:
        self._job, self._first_batch = job, Path(first_batch)
        self._encoder = _our_encoder(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if not self._first_batch.exists():
            self._first_batch.write_text(repr(time.time()), encoding="utf-8")
        tokenised = [Tokenized(np.frombuffer(ids, np.int32)) for ids in batch["token_ids"]]
        found: dict[int, NDArray[Any]] = {}
        for members in token_budget_packs([len(one) for one in tokenised], self._job.token_budget):
            arrays = _encoded(self._encoder, [tokenised[place] for place in members], self._job.resolution)
            found |= dict(zip(members, arrays, strict=True))
        embeddings = [found[place].tobytes() for place in range(len(tokenised))]
        return {"digest": batch["digest"], "embedding": embeddings}


def read_output(output: Path, width: int) -> Vectors:
    """What a contestant left: a file of named arrays, or a folder of Parquet."""
    if output.is_dir():
        table = pq.read_table(output, columns=["digest", "embedding"])
        rows = zip(table["digest"].to_pylist(), table["embedding"].to_pylist(), strict=True)
        return {digest: np.frombuffer(values, STORED).reshape(-1, width) for digest, values in rows}
    with np.load(output) as found:
        return dict(found)


CONTESTANTS: Final[Mapping[str, Callable[[Job, Path], dict[str, float]]]] = {
    "loop": loop,
    "script": script,
    "ray_data": ray_data,
}


def main(name: str, file: str, output: str) -> None:
    """Run one and print what it took."""
    import torch

    job = Job.read(Path(file))
    torch.set_num_threads(job.threads)
    print(json.dumps(CONTESTANTS[name](job, Path(output))))


def _our_encoder(job: Job) -> Encoder:
    import torch

    torch.set_num_threads(job.threads)
    return load_encoder(job.choice, job.device)


def _encoded(encoder: Encoder, sequences: Sequence[Tokenized], resolution: str) -> list[NDArray[Any]]:
    encoded = encoder.encode(pack(sequences))
    return [values_LD.astype(STORED) for values_LD in reduce(encoded, resolution)]


def _padded(batch: Sequence[Tokenized]) -> dict[str, NDArray[np.int64]]:
    from isoformer.encoders.esm2 import PAD_ID

    ids_BL = np.full((len(batch), max(map(len, batch))), PAD_ID, np.int64)
    for row, one in enumerate(batch):
        ids_BL[row, : len(one)] = one.token_ids
    return {"input_ids": ids_BL, "attention_mask": (ids_BL != PAD_ID).astype(np.int64)}


def _save(output: Path, vectors: Vectors) -> None:
    with output.open("wb") as file:
        np.savez(file, **cast(dict[str, Any], vectors))


def _without_rows(job: Job) -> Job:
    return Job(job.choice, job.resolution, job.device, job.threads, job.token_budget, ())


if __name__ == "__main__":
    main(*sys.argv[1:])
