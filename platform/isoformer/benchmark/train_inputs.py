"""What `isoformer benchmark train` trains on: made embeddings in shards of their own, and real proteins.

Values are random: nothing is learned from them, and no figure here is about how well a model predicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from isoformer.benchmark.sequences import sample, spread_over_lengths
from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.store import (
    EmbeddingDataset,
    EmbeddingsManifest,
    ShardWriter,
    sequences_digest,
    write_manifest,
)
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer
from isoformer.encoders.resolution import reduce
from isoformer.encoders.spec import pack
from isoformer.schema import Modality
from isoformer.storage import Storage
from isoformer.training.data import PinnedDataset, SequenceStates, SequenceTokens, States, StreamedStates

POSITIONS: Final = 64
WIDTHS: Final[Mapping[Modality, int]] = {"dna": 512, "rna": 512, "protein": 480}
"""Of bins:64 of Nucleotide Transformer 50M and ESM-2 35M: 192 kB a transcript."""
TISSUES: Final = 30


def made_shards(storage: Storage, *, shards: int, transcripts: int) -> PinnedDataset:
    """Embeddings of so many transcripts a shard and three modalities, written as the engine writes them; the
    dataset streams them. Nine in ten transcripts are for training.
    """
    names = [f"{number:032x}" for number in range(shards * transcripts)]
    random = np.random.default_rng(0)
    states: dict[Modality, States] = {}
    for modality, width in WIDTHS.items():
        entries = []
        for shard in range(shards):
            digests = names[shard * transcripts : (shard + 1) * transcripts]
            header = ShardHeader(
                f"made-{modality}",
                modality,
                width,
                "f16",
                f"bins:{POSITIONS}",
                shard,
                sequences_digest(digests),
            )
            writer = ShardWriter(storage, header)
            for digest in digests:
                writer.add(digest, random.standard_normal((POSITIONS, width), np.float32).astype(np.float16))
            entries.append(writer.publish({}, {}))
        manifest: EmbeddingsManifest = {
            "schema_version": 1, "key": f"made-{modality}", "modality": modality, "spec": {},
            "weights_digest": "none", "resolution": f"bins:{POSITIONS}", "dtype": "f16", "width": width,
            "transcripts_fingerprint": "made", "shards": entries,
        }  # fmt: skip
        write_manifest(storage, manifest)
        states[modality] = StreamedStates(
            EmbeddingDataset.open(storage, modality, f"made-{modality}"),
            np.array([name.encode() for name in names]),
            np.full(len(names), POSITIONS, np.int64),
            np.repeat(np.arange(shards), transcripts),
        )
    return replace(_columns(len(names)), states=states)


def proteins_both_ways(
    choice: EncoderChoice, count: int, resolution: str
) -> tuple[PinnedDataset, PinnedDataset]:
    """The same proteins of the shipped sample as tokens for an encoder inside, and as its embeddings."""
    tokenizer, encoder, spec = load_tokenizer(choice), load_encoder(choice), get_spec(choice)
    proteins = sample()[0]
    chosen = spread_over_lengths(proteins, count * int(np.mean([len(one) for one in proteins])), least=count)
    tokenised = [tokenizer(protein) for protein in chosen]
    rows = np.arange(len(chosen))
    packed = pack(tokenised)
    inside = replace(
        _columns(len(chosen)),
        tokens={"protein": SequenceTokens(packed.token_ids, packed.offsets, rows, spec.width)},
    )
    arrays = [reduce(encoder.encode(pack([one])), resolution)[0].astype(np.float16) for one in tokenised]
    offsets = _ends(arrays)
    cached = replace(
        _columns(len(chosen)), states={"protein": SequenceStates(np.concatenate(arrays), offsets, rows)}
    )
    return inside, cached


def _ends(arrays: Sequence[Any]) -> Any:
    return np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int64)


def _columns(count: int) -> PinnedDataset:
    random = np.random.default_rng(1)
    names = np.array([f"T{number}" for number in range(count)])
    return PinnedDataset(
        transcript_ids=names,
        gene_ids=names,
        split=np.where(np.arange(count) % 10 == min(9, count - 1), "validation", "train"),
        targets=random.standard_normal((count, TISSUES), np.float32),
        target_mask=np.ones((count, TISSUES), np.bool_),
        target_names=tuple(f"tissue {number}" for number in range(TISSUES)),
        states={},
        features=np.zeros((count, 1), np.float32),
        feature_names=("none",),
        transcripts_fingerprint="made",
        encoder_keys={modality: f"made-{modality}" for modality in WIDTHS},
        encoder_names=dict.fromkeys(WIDTHS, "made"),
        encoder_trained=dict.fromkeys(WIDTHS, "random"),
        label_provenance="made by the benchmark",
    )
