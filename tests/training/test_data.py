"""The pinned dataset: the join by digest, missing modalities, and a clear error for everything that does not
fit.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from isoformer.embeddings.store import EmbeddingDataset
from isoformer.errors import FingerprintError, InputError, StorageError
from isoformer.manifest import read_shard
from isoformer.schema import Modality
from isoformer.storage import open_storage
from isoformer.training.data import PinnedDataset, SequenceStates, check_memory, load_dataset
from made_dataset import made_dataset, write_embeddings
from tiny_dataset import write_dataset

KEYS: dict[Modality, str] = {"rna": "made-rna.x", "protein": "made-protein.x"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("root"))
    write_dataset(root, poison_protein=True, window_bases=256)
    for modality, key in KEYS.items():
        write_embeddings(root, modality, key=key)
    return root


def test_every_transcript_gets_the_states_of_its_own_sequence(root: str) -> None:
    data = load_dataset(root, KEYS)
    storage = open_storage(root)
    row = 0
    for index in range(3):
        table = read_shard(storage, index)
        states = EmbeddingDataset.open(storage, "protein", KEYS["protein"]).read_shard(index)
        for transcript_id, digest in zip(
            table["transcript_id"].to_pylist(), table["protein_digest"].to_pylist(), strict=True
        ):
            assert data.transcript_ids[row] == transcript_id
            protein = data.states["protein"]
            sequence = protein.sequence_of_N[row]
            assert (sequence >= 0) == (digest in states)
            if sequence >= 0:
                got = protein.flat_PD[protein.offsets[sequence] : protein.offsets[sequence + 1]]
                np.testing.assert_array_equal(got, states[digest])
            row += 1
    assert row == len(data) == 24


def test_equal_sequences_are_held_once_and_missing_ones_are_minus_one(root: str) -> None:
    data = load_dataset(root, KEYS)
    protein = data.states["protein"]
    assert len(protein.offsets) - 1 < (protein.sequence_of_N >= 0).sum()
    assert (protein.lengths[protein.sequence_of_N < 0] == 0).all()
    assert data.quarantined == {"rna": {}, "protein": {"no valid residue": 2}}
    assert data.encoder_trained == {"rna": "random", "protein": "random"}
    assert data.label_provenance == "made up" and data.target_names == ("Liver", "Brain")


def test_means_are_over_a_transcripts_own_positions(root: str) -> None:
    states = load_dataset(root, KEYS).states["protein"]
    means = states.means()
    for row, sequence in enumerate(states.sequence_of_N):
        part = slice(*states.offsets[sequence : sequence + 2]) if sequence >= 0 else None
        expected = np.zeros(8) if part is None else states.flat_PD[part].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(means[row], expected, atol=1e-5)


def test_the_fingerprint_follows_transcripts_and_keys(root: str, tmp_path: Path) -> None:
    both, one = load_dataset(root, KEYS), load_dataset(root, {"rna": KEYS["rna"]})
    assert both.fingerprint == load_dataset(root, KEYS).fingerprint != one.fingerprint
    assert one.modalities == ("rna",)
    assert both.subset(("rna",)).fingerprint == one.fingerprint


def test_a_key_that_is_not_there_is_named(root: str) -> None:
    with pytest.raises(StorageError, match=r"no finished rna dataset 'nothing'"):
        load_dataset(root, {"rna": "nothing"})
    with pytest.raises(InputError, match="no encoder key is given"):
        load_dataset(root, {})


def test_embeddings_of_other_transcripts_are_refused(root: str, tmp_path: Path) -> None:
    other = str(tmp_path)
    write_dataset(other, seed=1, window_bases=256)
    write_embeddings(other, "rna", key="a")
    manifest = tmp_path / "embeddings/rna/a/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "transcripts_fingerprint": "feed"}))
    with pytest.raises(FingerprintError, match="made from transcripts feed"):
        load_dataset(other, {"rna": "a"})


def test_nan_and_missing_rows_are_named(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = EmbeddingDataset.read_shard

    def spoiled(self: EmbeddingDataset, index: int):
        return {digest: np.full_like(states, np.nan) for digest, states in read(self, index).items()}

    monkeypatch.setattr(EmbeddingDataset, "read_shard", spoiled)
    with pytest.raises(InputError, match=r"T0\.0 in shard-00000\.parquet: the embedding has NaN"):
        load_dataset(root, KEYS)
    monkeypatch.setattr(EmbeddingDataset, "read_shard", lambda self, index: {})
    with pytest.raises(InputError, match="the sequence has no embedding"):
        load_dataset(root, KEYS)


def test_too_little_memory_is_said_beforehand(root: str) -> None:
    with pytest.raises(InputError, match=r"needs about .* MiB pinned in memory.*allowed: fewer modalities"):
        load_dataset(root, KEYS, mode="pinned", memory_limit_bytes=100)
    with pytest.raises(InputError, match="pinned"):
        check_memory(1 << 60)


def test_all_proteins_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made_dataset()
    data.states["protein"].sequence_of_N[:] = -1
    with pytest.raises(InputError, match="no transcript has any of the requested modalities"):
        data.require_inputs(["protein"])
    assert data.require_inputs(["protein", "rna"]) == 0


def test_a_dataset_of_no_sequences_has_no_lengths() -> None:
    empty = SequenceStates(np.zeros((0, 4), np.float16), np.zeros(1, np.int64), np.full(3, -1))
    assert empty.lengths.tolist() == [0, 0, 0] and (empty.means() == 0).all()


def test_splits_are_counted_in_the_error() -> None:
    data: PinnedDataset = made_dataset()
    with pytest.raises(InputError, match=r"got 'nowhere'; allowed: counts \{'train': 48"):
        data.rows("nowhere")
