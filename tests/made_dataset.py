"""Small datasets made here, for tests of models, training and evaluation.

`made_dataset` is in memory: expression follows a signal that the DNA and RNA embeddings carry.
`write_embeddings` puts made-up embeddings beside transcripts that `tiny_dataset.write_dataset` wrote.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from isoformer.baselines import COMPOSITION_FEATURES, LENGTH_FEATURES
from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.store import ShardWriter, sequences_digest, write_manifest
from isoformer.manifest import read_manifest, read_shard
from isoformer.schema import Modality, digest_column
from isoformer.storage import open_storage
from isoformer.training.data import PinnedDataset, SequenceStates

WIDTHS: dict[Modality, int] = {"dna": 8, "rna": 12, "protein": 16}


def made_dataset(
    genes: int = 40, isoforms: int = 2, tissues: int = 3, widths: dict[Modality, int] = WIDTHS, seed: int = 0
) -> PinnedDataset:
    """Genes with isoforms of 1 to 6 positions a modality; every seventh transcript lacks its protein."""
    random = np.random.default_rng(seed)
    count = genes * isoforms
    gene_of = np.repeat(np.arange(genes), isoforms)
    signal_N2 = random.normal(size=(count, 2))
    states = {m: _made_states(random, signal_N2, w, m) for m, w in widths.items()}
    loading_2K = random.normal(size=(2, tissues))
    targets = 2 + signal_N2 @ loading_2K + 0.3 * random.normal(size=(count, tissues))
    split_of_gene = np.array(["train", "train", "train", "validation", "test"])[np.arange(genes) % 5]
    mask = random.random((count, tissues)) > 0.05
    return PinnedDataset(
        transcript_ids=np.array([f"T{i}" for i in range(count)]),
        gene_ids=np.array([f"G{g}" for g in gene_of]),
        split=split_of_gene[gene_of],
        targets=np.where(mask, targets, 0).astype(np.float32),
        target_mask=mask,
        target_names=tuple(f"tissue {k}" for k in range(tissues)),
        states=states,
        features=random.normal(size=(count, len(LENGTH_FEATURES) + len(COMPOSITION_FEATURES))).astype(
            np.float32
        ),
        feature_names=LENGTH_FEATURES + COMPOSITION_FEATURES,
        transcripts_fingerprint=f"made-{seed}",
        encoder_keys={m: f"made-{m}.key" for m in widths},
        encoder_names={m: f"made-{m}" for m in widths},
        encoder_trained={m: "pre-trained" for m in widths},
        label_provenance="made by a test",
    )


def write_embeddings(root: str, modality: Modality, *, key: str, width: int = 8, seed: int = 0) -> str:
    """Random embeddings of 1 to 5 positions for every distinct sequence; a sequence of X alone is
    quarantined.
    """
    storage = open_storage(root)
    manifest = read_manifest(storage)
    random = np.random.default_rng(seed)
    entries = []
    for index in range(len(manifest.shards)):
        table = read_shard(storage, index)
        sequences = dict(
            zip(table[digest_column(modality)].to_pylist(), table[modality].to_pylist(), strict=True)
        )
        digests = sorted(digest for digest in sequences if digest is not None)
        bad = {d: "no valid residue" for d in digests if set(sequences[d] or "") == {"X"}}
        rows = {
            d: random.normal(size=(int(random.integers(1, 6)), width)).astype(np.float16)
            for d in digests
            if d not in bad
        }
        header = ShardHeader(
            key=key, modality=modality, width=width, dtype="f16", resolution="tokens", shard=index,
            sequences_digest=sequences_digest(digests),
        )  # fmt: skip
        writer = ShardWriter(storage, header)
        for digest, values_LD in rows.items():
            writer.add(digest, values_LD)
        entries.append(writer.publish(bad, {}))
    described: Any = {
        "schema_version": 1, "key": key, "modality": modality, "weights_digest": "none", "dtype": "f16",
        "resolution": "tokens", "width": width, "transcripts_fingerprint": manifest.fingerprint,
        "shards": entries, "spec": {"name": f"made-{modality}", "trained": "random"},
    }  # fmt: skip
    write_manifest(storage, described)
    return key


def _made_states(
    random: np.random.Generator, signal_N2: Any, width: int, modality: Modality
) -> SequenceStates:
    lengths = random.integers(1, 7, size=len(signal_N2))
    strength = 0.2 if modality == "protein" else 1.0
    carried = np.repeat(signal_N2 @ random.normal(size=(2, width)), lengths, axis=0) * strength
    flat = (carried + 0.5 * random.normal(size=carried.shape)).astype(np.float16)
    sequence = np.arange(len(signal_N2))
    if modality == "protein":
        sequence = np.where(sequence % 7 == 0, -1, sequence)
    return SequenceStates(flat, np.concatenate([[0], np.cumsum(lengths)]), sequence)
