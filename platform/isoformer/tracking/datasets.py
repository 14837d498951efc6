"""The dataset under a root, as what a run has used: MLflow's UI lists it, and finds runs by it."""

from __future__ import annotations

from isoformer.schema import MODALITIES
from isoformer.storage import open_storage
from isoformer.tracking.config import local_path
from isoformer.tracking.tracker import Tracker


def log_dataset(tracker: Tracker, run: str, root: str, *, context: str = "train") -> None:
    """Name, fingerprint, place, columns and counts of the transcripts under `root`, from their manifest.

    Nothing where tracking is off or there is no manifest: what reads the dataset says so better.
    """
    from isoformer.manifest import MANIFEST_KEY, read_manifest

    storage = open_storage(root)
    if not tracker.is_active or not storage.exists(MANIFEST_KEY):
        return
    manifest = read_manifest(storage)
    columns = [{"name": modality, "type": "string"} for modality in MODALITIES]
    columns += [{"name": name, "type": "double"} for name in manifest.target_names]
    counts = manifest.counts
    profile = {
        "transcripts": counts.rows_out,
        "targets": len(manifest.target_names),
        "target_unit": manifest.target_unit,
        "labels": manifest.label_provenance,
        **{f"split.{name}": count for name, count in counts.splits.items()},
    }
    tracker.log_input(
        run,
        name="transcripts",
        digest=manifest.fingerprint,
        source=str(local_path(root) or root),
        context=context,
        details={"schema": {"mlflow_colspec": columns}, "profile": profile},
    )
