"""A small dataset made here: expression that RNA embeddings tell and protein embeddings do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from isoformer.schema import Modality
from isoformer.sweep.data import SharedData, without_test
from isoformer.training.data import PinnedDataset, SequenceStates

RNA_KEYS = ("tiny-rna.11111111.pooled.f16.aaaaaaaa", "tiny-rna.11111111.bins-4.f16.bbbbbbbb")
PROTEIN_KEYS = ("tiny-protein.22222222.pooled.f16.cccccccc", "tiny-protein.22222222.bins-4.f16.dddddddd")
KEYS: dict[Modality, tuple[str, ...]] = {"rna": RNA_KEYS, "protein": PROTEIN_KEYS}


def made_dataset(transcripts: int = 90, tissues: int = 4, width: int = 8) -> dict[str, PinnedDataset]:
    """The same transcripts at two resolutions: "pooled" and "bins"."""
    random = np.random.default_rng(7)
    rna_NLD = random.normal(size=(transcripts, 4, width)).astype(np.float16)
    protein_NLD = random.normal(size=(transcripts, 4, width)).astype(np.float16)
    signal_NK = rna_NLD.mean(axis=1).astype(np.float32) @ random.normal(size=(width, tissues)).astype(
        np.float32
    )
    split = np.array((["train"] * 6 + ["validation"] * 2 + ["test"]) * (transcripts // 9))
    common = {
        "transcript_ids": np.array([f"t{i}" for i in range(transcripts)]),
        "gene_ids": np.array([f"g{i}" for i in range(transcripts)]),
        "split": split,
        "targets": signal_NK + 0.1 * random.normal(size=signal_NK.shape).astype(np.float32),
        "target_mask": np.ones((transcripts, tissues), dtype=bool),
        "target_names": tuple(f"tissue {k}" for k in range(tissues)),
        "features": random.normal(size=(transcripts, 3)).astype(np.float32),
        "feature_names": ("a", "b", "c"),
        "transcripts_fingerprint": "made",
        "encoder_names": {"rna": "tiny-rna", "protein": "tiny-protein"},
        "encoder_trained": {"rna": "pre-trained", "protein": "random"},
        "label_provenance": "made by a test",
    }
    pooled = {"rna": rna_NLD.mean(axis=1, keepdims=True), "protein": protein_NLD.mean(axis=1, keepdims=True)}
    binned = {"rna": rna_NLD, "protein": protein_NLD}
    return {
        name: PinnedDataset(
            **common,
            states={modality: _states(array) for modality, array in arrays.items()},
            encoder_keys={modality: KEYS[modality][index] for modality in KEYS},
        )
        for index, (name, arrays) in enumerate([("pooled", pooled), ("bins", binned)])
    }


def _states(array_NLD: np.ndarray) -> SequenceStates:
    count, positions, width = array_NLD.shape
    flat = np.ascontiguousarray(array_NLD.reshape(-1, width)).astype(np.float16)
    return SequenceStates(
        flat, np.arange(count + 1, dtype=np.int64) * positions, np.arange(count, dtype=np.int64)
    )


@pytest.fixture(scope="session")
def shared() -> SharedData:
    """All keys of KEYS, without test rows."""
    states, names = {}, {}
    for data in made_dataset().values():
        kept = without_test(data)
        for modality, key in data.encoder_keys.items():
            states[modality, key] = kept.states[modality]
            names[modality, key] = (data.encoder_names[modality], data.encoder_trained[modality])
    return SharedData(kept.subset([]), states, names)


@pytest.fixture
def load_made() -> Callable[..., PinnedDataset]:
    """Stands where `load_dataset` stands: the made dataset at the resolution that the keys name."""

    def load(root: str, keys: dict[Modality, str]) -> PinnedDataset:
        data = made_dataset()["pooled" if ".pooled." in next(iter(keys.values())) else "bins"]
        return data.subset(list(keys))

    return load
