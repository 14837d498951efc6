"""Splits by homology cluster: genes with nearly the same protein or RNA are on one side.

In: planned rows, whose sequences are cut here once more, before the shards are. Out: the same rows with the
split of their gene's cluster: that of the hash of its first gene id, so that a gene without relatives keeps
the split that `method: hash` gives it, and an unrelated gene that is added moves no other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from isoformer.homology import Kind, Pair, clusters, similar_pairs
from isoformer.sources.identifiers import without_par
from isoformer.splits import SplitConfig, hash_split, require_no_empty_split

if TYPE_CHECKING:
    from isoformer.extraction import Policy
    from isoformer.planning import Plan
    from isoformer.sources.reference import Reference


def with_homology_splits(
    plan: Plan, reference: Reference | None, policy: Policy, config: SplitConfig
) -> Plan:
    """The plan with the clusters' splits, and counts of clusters among its source counts."""
    from isoformer.extraction import extract_rows

    rows, _, _ = extract_rows(plan.rows.to_pylist(), reference, policy)
    cluster_of = gene_clusters(rows, config)
    first: dict[int, str] = {}
    for gene in sorted(cluster_of):
        first.setdefault(cluster_of[gene], gene)
    genes = [without_par(gene) for gene in plan.rows["gene_id"].to_pylist()]
    splits = [hash_split(first[cluster_of[gene]] if gene in cluster_of else gene, config) for gene in genes]
    require_no_empty_split(Counter(splits), config)
    sizes = Counter(cluster_of.values())
    counts = {
        "homology_clusters": len(sizes),
        "homology_largest_cluster_genes": max(sizes.values(), default=0),
        "homology_genes_with_relatives": sum(size for size in sizes.values() if size > 1),
    }
    place = plan.rows.schema.get_field_index("split")
    column = pa.array(splits, type=plan.rows.schema.field("split").type)
    moved = plan.rows.set_column(place, plan.rows.schema.field("split"), column)
    return replace(plan, rows=moved, source_counts={**plan.source_counts, **counts})


def gene_clusters(rows: list[dict[str, Any]], config: SplitConfig) -> dict[str, int]:
    """Cluster of each gene (without PAR suffix), over all proteins and RNAs of its transcripts."""
    genes = sorted({without_par(row["gene_id"]) for row in rows})
    place_of = {gene: place for place, gene in enumerate(genes)}
    pairs: list[Pair] = []
    least: dict[Kind, float] = {"protein": config.protein_identity, "rna": config.rna_identity}
    for kind, identity in least.items():
        holders = sorted({(row[kind], place_of[without_par(row["gene_id"])]) for row in rows if row[kind]})
        gene_of = [gene for _, gene in holders]
        for pair in similar_pairs([text for text, _ in holders], kind, identity, group=gene_of):
            pairs.append(Pair(gene_of[pair.first], gene_of[pair.second], pair.identity))
    found = clusters(len(genes), pairs)
    return dict(zip(genes, np.asarray(found).tolist(), strict=True))
