"""Token sequences of real lengths: proteins and RNAs of the shipped human sample."""

from __future__ import annotations

import tempfile

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

BASES_PER_TOKEN = 6
"""An RNA's length in tokens is its number of 6-mers, as Nucleotide Transformer reads it."""


def protein_and_rna_tokens(choice: EncoderChoice, spec: EncoderSpec) -> list[Tokenized]:
    """The sample's proteins, tokenised, and as many stretches of them as long as its RNAs are in 6-mers.

    One protein encoder is measured on both length distributions; the stretches are made of the proteins laid
    end to end, in the sample's order.
    """
    proteins, rnas = _sample()
    tokenizer = load_tokenizer(choice)
    residues = "".join(proteins)
    lengths = np.minimum([len(rna) // BASES_PER_TOKEN + 1 for rna in rnas], spec.max_tokens - 2)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) % (len(residues) - spec.max_tokens)
    stretches = [residues[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    return [tokenizer(sequence) for sequence in (*proteins, *stretches)]


def spread_over_lengths(tokens: list[Tokenized], wanted_tokens: int, *, least: int) -> list[Tokenized]:
    """About so many tokens, in at least so many sequences.

    They are taken at equal steps of the sorted lengths and put into a fixed random order.
    """
    by_length = sorted(tokens, key=len)
    mean = float(np.mean([len(one) for one in tokens]))
    count = int(np.clip(wanted_tokens / mean, least, len(tokens)))
    places: NDArray[np.int64] = ((np.arange(count) + 0.5) * len(tokens) / count).astype(np.int64)
    return [by_length[place] for place in np.random.default_rng(0).permutation(places)]


def _sample() -> tuple[list[str], list[str]]:
    config = build(PrepareConfig, {**demo_paths(), "shards": 1})
    with tempfile.TemporaryDirectory(prefix="isoformer-benchmark-") as root:
        prepare(config, root, run_shards=run_here)
        storage = open_storage(root)
        table = read_shard(storage, 0, ["protein", "rna"])
    return table["protein"].drop_null().to_pylist(), table["rna"].drop_null().to_pylist()
