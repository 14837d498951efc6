"""Golden vectors of the shipped encoders. After new weights are shipped, write them anew, look at the diff:

.venv/bin/python tests/encoders/golden.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from isoformer.encoders.registry import EncoderChoice, load_encoder, load_tokenizer, weights_digest
from isoformer.encoders.resolution import reduce
from isoformer.encoders.spec import pack

FILE = Path(__file__).with_name("golden.json")
SHIPPED = ("esm2-tiny", "ntv2-tiny-dna", "ntv2-tiny-rna")
SEQUENCES = {
    "esm2-tiny": "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAEDLQVGQVELGG",  # insulin, start
    "ntv2-tiny-dna": "GGGGCGGGGCCTATAAAAGGCGCGCNACGTTGCATTGACCATGGCATAAATTTCCCGGGAAATTTAGCTAGCTA",
    "ntv2-tiny-rna": "AUGGCCCUGUGGAUGCGCCUCCUGCCCCUGCUGGCGCUGCUGGCCCUCUGGGGACCUGACCCAGCCGCAGCCNUAA",
}


def golden(name: str) -> dict[str, Any]:
    """The weights' digest, and the pooled vector of one fixed sequence."""
    choice = EncoderChoice(name=name)
    encoded = load_encoder(choice).encode(pack([load_tokenizer(choice)(SEQUENCES[name])]))
    pooled = reduce(encoded, "pooled")[0][0]
    return {"weights": weights_digest(choice), "pooled": [round(float(value), 6) for value in pooled]}


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: golden(name) for name in SHIPPED}, indent=1) + "\n", encoding="utf-8")
