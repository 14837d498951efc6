"""Token sequences of real lengths: proteins and RNAs of the shipped human sample."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence, Sized
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from isoformer.config import build
from isoformer.demo_data import demo_paths
from isoformer.encoders.registry import EncoderChoice, load_tokenizer
from isoformer.encoders.spec import EncoderSpec, Tokenized
from isoformer.manifest import read_shard
from isoformer.planning import PrepareConfig
from isoformer.storage import open_storage
from isoformer.transcripts import prepare, run_here

OfLength = TypeVar("OfLength", bound=Sized)

BASES_PER_TOKEN = 6
"""An RNA's length in tokens is its number of 6-mers, as Nucleotide Transformer reads it."""


def protein_and_rna_tokens(choice: EncoderChoice, spec: EncoderSpec) -> list[Tokenized]:
    """The sample's proteins, tokenised, and as many stretches of them as long as its RNAs are in 6-mers.

    One protein encoder is measured on both length distributions; the stretches are made of the proteins laid
    end to end, in the sample's order.
    """
    proteins, rnas = sample()
    tokenizer = load_tokenizer(choice)
    residues = "".join(proteins)
    lengths = np.minimum([len(rna) // BASES_PER_TOKEN + 1 for rna in rnas], spec.max_tokens - 2)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) % (len(residues) - spec.max_tokens)
    stretches = [residues[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    return [tokenizer(sequence) for sequence in (*proteins, *stretches)]


def spread_over_lengths(sequences: Sequence[OfLength], wanted: int, *, least: int) -> list[OfLength]:
    """Sequences of about so many tokens (or letters) in all, at least so many of them.

    They are taken at equal steps of the sorted lengths and put into a fixed random order.
    """
    by_length = sorted(sequences, key=len)
    mean = float(np.mean([len(one) for one in sequences]))
    count = int(np.clip(wanted / mean, min(least, len(sequences)), len(sequences)))
    places: NDArray[np.int64] = ((np.arange(count) + 0.5) * len(sequences) / count).astype(np.int64)
    return [by_length[place] for place in np.random.default_rng(0).permutation(places)]


def token_budget_packs(lengths: Sequence[int], budget_tokens: int) -> list[list[int]]:
    """Places of sequences in packs, long first, as many as the budget takes: what the engine does."""
    packs: list[list[int]] = []
    room = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if not packs or lengths[place] > room:
            packs.append([])
            room = budget_tokens
        packs[-1].append(place)
        room -= lengths[place]
    return packs


def sample() -> tuple[list[str], list[str]]:
    """Proteins and RNAs of the shipped transcripts."""
    config = build(PrepareConfig, {**demo_paths(), "shards": 1})
    with tempfile.TemporaryDirectory(prefix="isoformer-benchmark-") as root:
        prepare(config, root, run_shards=run_here)
        storage = open_storage(root)
        table = read_shard(storage, 0, ["protein", "rna"])
    return table["protein"].drop_null().to_pylist(), table["rna"].drop_null().to_pylist()
