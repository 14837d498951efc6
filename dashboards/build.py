"""Write cluster.json, a Grafana dashboard over the metrics that every Ray node exports.

Run `python dashboards/build.py` after a change; a test holds the committed file against this script.
Import the JSON in Grafana with Ray's Prometheus as its data source.
"""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder

PANELS = (
    ("CPU in use", "percent", "ray_node_cpu_utilization", "{{instance}}"),
    ("Memory in use", "bytes", "ray_node_mem_used", "{{instance}}"),
    ("Object store in use", "bytes", "sum(ray_object_store_memory) by (Location)", "{{Location}}"),
    ("Disk free", "bytes", "ray_node_disk_free", "{{instance}}"),
    ("Tasks by state", "short", "sum(ray_tasks) by (State)", "{{State}}"),
    ("Actors by state", "short", "sum(ray_actors) by (State)", "{{State}}"),
)


def build() -> str:
    """The dashboard as the JSON text that Grafana imports."""
    board = (
        dashboard.Dashboard("IsoFormer: cluster health")
        .uid("isoformer-cluster")
        .tags(["isoformer"])
        .refresh("10s")
        .time("now-30m", "now")
    )
    for title, unit, query, legend in PANELS:
        target = prometheus.Dataquery().expr(query).legend_format(legend)
        board = board.with_panel(
            timeseries.Panel().title(title).unit(unit).span(12).height(8).with_target(target)
        )
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("cluster.json").write_text(build())
