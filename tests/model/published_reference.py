"""Let the authors' own code of the published IsoFormer predict, so that ours can be compared with it.

    make compare-published        runs this, online, in an environment of its own, then imports and compares

The one file that runs code from the authors' repository: nobody else calls it, and it runs where nothing of
the platform is installed, since that code needs other versions of its libraries. How the model is called is
from the authors' notebook (instadeepai/nucleotide-transformer, notebooks/isoformer/inference.ipynb). Writes
OUTPUT/checkpoint and OUTPUT/reference.safetensors.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

REPOSITORY = "InstaDeepAI/isoformer"
LETTERS = {"dna": ("ACGT", 196_608), "rna": ("ACGT", 6_000), "protein": ("ACDEFGHIKLMNPQRSTVWY", 500)}
PAD_ID = 1


def main(output: Path) -> None:
    revision = str(HfApi().model_info(REPOSITORY).sha)
    folder = snapshot_download(REPOSITORY, revision=revision, local_dir=output / "checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    drawn = random.Random(0)
    texts = {
        modality: "".join(drawn.choices(letters, k=size)) for modality, (letters, size) in LETTERS.items()
    }
    tokens = tokenizer(**{f"{modality}_input": [text] for modality, text in texts.items()})
    dna, rna, protein = (torch.tensor(one["input_ids"]) for one in tokens)
    with torch.no_grad():
        result = model(
            tensor_dna=dna,
            tensor_rna=rna,
            tensor_protein=protein,
            attention_mask_rna=rna != PAD_ID,
            attention_mask_protein=protein != PAD_ID,
        )
    keys = {"predictions": "gene_expression_predictions", "fused_dna": "final_dna_embeddings"}
    tensors = {ours: result[theirs].float().contiguous() for ours, theirs in keys.items()}
    notes = {"sequences": json.dumps(texts), "revision": revision}
    save_file(tensors, output / "reference.safetensors", metadata=notes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
