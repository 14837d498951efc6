"""Write the Grafana dashboards beside this file: embedding.json, training.json, sweep.json, cluster.json.

Run `python dashboards/build.py` after a change; a test holds the committed files against this script. What is
drawn stands in `*_panels.py`, how it becomes JSON in `grafana.py`.
"""

from __future__ import annotations

from pathlib import Path

import cluster_panels
import embedding_panels
import sweep_panels
import training_panels
from grafana import Board, to_json

BOARDS: tuple[Board, ...] = (
    embedding_panels.BOARD,
    training_panels.BOARD,
    sweep_panels.BOARD,
    cluster_panels.BOARD,
)


def build() -> dict[str, str]:
    """File name → content."""
    return {f"{board.name}.json": to_json(board) for board in BOARDS}


if __name__ == "__main__":
    for name, content in build().items():
        Path(__file__).with_name(name).write_text(content, encoding="utf-8")
