"""The dashboard of the cluster: nodes, processors, memory, object store, disk, GPUs, tasks and actors.

Over what Ray exports of itself. A counter that Ray exports only once it has counted something is 0 before.
"""

from __future__ import annotations

from grafana import Board, Panel, Query, Row

I = '{instance=~"$instance"}'  # noqa: E741
DISK_FULL = f"max by (instance) (ray_node_disk_usage{I} / (ray_node_disk_usage{I} + ray_node_disk_free{I}))"
STORE_FULL = (
    f"sum by (instance) (ray_object_store_used_memory{I}) "
    f"/ (sum by (instance) (ray_object_store_used_memory{I}) "
    f"+ sum by (instance) (ray_object_store_available_memory{I}))"
)
LOST = f"sum(ray_node_manager_unexpected_worker_failure_total{I}) or vector(0)"
KILLED = f"sum(ray_memory_manager_worker_eviction_total{I}) or vector(0)"

NOW = Row(
    "Now",
    (
        Panel(
            "Nodes",
            "Alive, of any kind.",
            (Query("sum(ray_cluster_active_nodes)"),),
            kind="stat",
        ),
        Panel(
            "Targets that do not answer",
            "What Ray listed to be scraped and Prometheus could not.",
            (Query('count(up{job="ray"} == 0) or vector(0)'),),
            kind="stat",
            warn_at=(1, 2),
        ),
        Panel(
            "CPUs in use",
            "Logical ones that are given out, of all.",
            (Query('sum(ray_resources{Name="CPU", State="USED"}) / sum(ray_resources{Name="CPU"})'),),
            unit="percentunit",
            kind="stat",
            ceiling=1,
        ),
        Panel(
            "GPUs in use",
            "GPUs that are given out, of all.",
            (Query('sum(ray_resources{Name="GPU", State="USED"}) / sum(ray_resources{Name="GPU"})'),),
            unit="percentunit",
            kind="stat",
            ceiling=1,
            requires="gpu",
        ),
        Panel(
            "Fullest disk",
            "Of any node. Ray stops giving out work where a disk is 95% full.",
            (Query(f"max({DISK_FULL})"),),
            unit="percentunit",
            kind="stat",
            warn_at=(0.8, 0.9),
            ceiling=1,
        ),
        Panel(
            "Killed for memory",
            "Workers that Ray has killed before their node ran out of memory.",
            (Query(KILLED),),
            kind="stat",
            warn_at=(1, 5),
        ),
    ),
)
NODES = Row(
    "Nodes",
    (
        Panel(
            "Nodes",
            "Alive by type; where there is an autoscaler, those that it starts or has lost.",
            (
                Query("sum by (node_type) (ray_cluster_active_nodes)", "{{node_type}}"),
                Query("sum(ray_cluster_pending_nodes) or vector(0)", "starting"),
                Query("sum(ray_cluster_failed_nodes) or vector(0)", "failed"),
            ),
            stacked=True,
        ),
        Panel(
            "Processors",
            "Part of each node's processors at work.",
            (Query(f"max by (instance) (ray_node_cpu_utilization{I}) / 100", "{{instance}}"),),
            unit="percentunit",
            ceiling=1,
        ),
        Panel(
            "Memory",
            "Part of each node's memory in use; at 95% Ray kills workers.",
            (Query(f"max by (instance) (ray_node_mem_used{I} / ray_node_mem_total{I})", "{{instance}}"),),
            unit="percentunit",
            warn_at=(0.85, 0.95),
            ceiling=1,
        ),
        Panel(
            "Disk",
            "Part of each node's disk in use.",
            (Query(DISK_FULL, "{{instance}}"),),
            unit="percentunit",
            warn_at=(0.8, 0.9),
            ceiling=1,
        ),
    ),
)
STORE = Row(
    "Object store and network",
    (
        Panel(
            "Object store",
            "Part of each node's shared memory for objects in use; a full one spills to disk.",
            (Query(STORE_FULL, "{{instance}}"),),
            unit="percentunit",
            warn_at=(0.8, 0.95),
            ceiling=1,
        ),
        Panel(
            "Spilled to disk",
            "Bytes of objects that lie on disk for want of memory.",
            (
                Query(
                    'sum by (instance) (ray_object_store_memory{instance=~"$instance", Location="SPILLED"})',
                    "{{instance}}",
                ),
            ),
            unit="bytes",
        ),
        Panel(
            "Network",
            "Received, and sent (downwards).",
            (
                Query(f"sum by (instance) (ray_node_network_receive_speed{I})", "{{instance}} in"),
                Query(f"-sum by (instance) (ray_node_network_send_speed{I})", "{{instance}} out"),
            ),
            unit="Bps",
        ),
        Panel(
            "Disk traffic",
            "Written, and read (downwards).",
            (
                Query(f"sum by (instance) (ray_node_disk_io_write_speed{I})", "{{instance}} written"),
                Query(f"-sum by (instance) (ray_node_disk_io_read_speed{I})", "{{instance}} read"),
            ),
            unit="Bps",
        ),
    ),
)
GPUS = Row(
    "GPUs",
    (
        Panel(
            "GPUs at work",
            "Utilisation of each.",
            (
                Query(
                    f"max by (instance, GpuIndex) (ray_node_gpus_utilization{I}) / 100",
                    "{{instance}} {{GpuIndex}}",
                ),
            ),
            unit="percentunit",
            warn_at=(0.3, 0.7),
            low_is_bad=True,
            ceiling=1,
            requires="gpu",
        ),
        Panel(
            "GPU memory",
            "In use on each.",
            (
                Query(
                    f"max by (instance, GpuIndex) (ray_node_gram_used{I}) * 1048576",
                    "{{instance}} {{GpuIndex}}",
                ),
            ),
            unit="bytes",
            requires="gpu",
        ),
        Panel(
            "GPUs given out",
            "By Ray, of all there are.",
            (
                Query('sum(ray_resources{Name="GPU", State="USED"})', "in use"),
                Query('sum(ray_resources{Name="GPU"})', "all"),
            ),
            requires="gpu",
        ),
    ),
)
WORK = Row(
    "Work",
    (
        Panel(
            "CPUs given out",
            "Logical ones, of all there are.",
            (
                Query('sum(ray_resources{Name="CPU", State="USED"})', "in use"),
                Query('sum(ray_resources{Name="CPU"})', "all"),
            ),
        ),
        Panel(
            "Tasks",
            "That wait or run, by state.",
            (Query('sum by (State) (ray_tasks{State!~"FINISHED|FAILED"})', "{{State}}"),),
            stacked=True,
        ),
        Panel(
            "Actors",
            "That live, by state.",
            (Query('sum by (State) (ray_actors{State!="DEAD"})', "{{State}}"),),
            stacked=True,
        ),
        Panel(
            "Workers that died",
            "Since the cluster began: unexpectedly, and killed by Ray for want of memory.",
            (Query(LOST, "unexpectedly"), Query(KILLED, "for memory")),
            warn_at=(1, 10),
        ),
    ),
)

BOARD = Board(
    "cluster",
    "cluster health",
    "The nodes under everything: processors, memory, disks, object store, GPUs, tasks and actors.",
    (NOW, NODES, STORE, GPUS, WORK),
    filters=(("instance", "ray_node_cpu_utilization"),),
)
