"""The Ray Train side of a fit: start the workers, carry their metrics to the driver, survive their deaths.

`run_workers` blocks until the run's folder is finished. A worker that dies is started again by Ray Train and
goes on from the newest checkpoint in the folder. An error that would come again (IsoformerError) ends the
workers at once and is raised in the driver as what it was.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from isoformer import errors
from isoformer.errors import ClusterError, IsoformerError
from isoformer.ray_session import has_gpu
from isoformer.storage import full_disk
from isoformer.training import counters
from isoformer.training.config import TrainConfig
from isoformer.training.data import PinnedDataset
from isoformer.training.ray_storage import ray_storage
from isoformer.training.runs import RunFolder, RunSettings

if TYPE_CHECKING:
    from isoformer.training.loop import FitResult

WORKER_TIMEOUT_SECONDS: Final = 600
END: Final = "end"


def run_workers(
    settings: RunSettings,
    folder: RunFolder,
    data: PinnedDataset,
    on_metrics: Callable[[dict[str, float]], None],
) -> None:
    """Fit on `settings.train.workers` workers and finish the folder.

    `on_metrics` is called here, in the driver, with each epoch's metrics.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    restarted = {"max_restarts": -1, "max_task_retries": -1}  # what it held is in the folder, too
    queue = Queue(actor_options={"num_cpus": 0, **restarted})
    transcripts = len(data.rows("train"))

    def told(message: dict[str, Any]) -> None:
        counters.reported(folder.run, message, transcripts)
        on_metrics(message["metrics"])

    inbox = _Inbox(queue, told)
    counters.began(folder.run, settings.train)
    storage_path, filesystem = ray_storage(folder.storage, f"{folder.prefix}ray")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "train": settings.train.model_dump(mode="json"),
            "folder": folder,
            "data": [ray.put(data)],
            "queue": queue,
        },
        torch_config=TorchConfig(timeout_s=WORKER_TIMEOUT_SECONDS),
        scaling_config=ScalingConfig(num_workers=settings.train.workers, use_gpu=_uses_gpu(settings.train)),
        run_config=RunConfig(
            name=f"ray-{uuid.uuid4().hex[:8]}",
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=settings.train.max_failures),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise ClusterError(
            f"{folder.uri}: training failed more than {settings.train.max_failures} times: {_told(error)}"
        ) from error
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"{folder.uri}: Ray has lost what steers the training ({_told(error)}); resume the run"
        ) from error
    finally:
        inbox.close()
        counters.ended(folder.run)
        queue.shutdown(force=True)
        folder.delete("ray/")
    inbox.raise_error()


def train_worker(loop_config: dict[str, Any]) -> None:
    """What each Ray Train worker runs: rebuild the configuration, fetch the shared data, fit."""
    import ray.train

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    outbox = _Outbox(loop_config["queue"] if rank == 0 else None)
    try:
        fit_in_folder(
            TrainConfig.model_validate(loop_config["train"]),
            _fetched(loop_config["data"]),
            loop_config["folder"],
            outbox=outbox,
            rank=rank,
            world_size=world_size,
        )
    except Exception as error:
        told = error if isinstance(error, IsoformerError) else full_disk(error)
        if told is None:
            raise
        # the same on every retry: tell the driver, do not die and be restarted
        outbox({"error": type(told).__name__, "text": str(told)})


def fit_in_folder(
    config: TrainConfig,
    data: PinnedDataset,
    folder: RunFolder,
    *,
    outbox: Callable[[dict[str, Any]], None],
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Fit from the folder's newest checkpoint on, publish one an epoch, and finish the folder (rank zero)."""
    from isoformer.training.loop import fit

    def report(metrics: dict[str, float], write: Callable[[Path], None] | None) -> None:
        if write is not None:
            began = time.perf_counter()
            folder.publish_checkpoint(write, int(metrics["epoch"]), int(metrics.get("step", -1)) + 1)
            outbox({"metrics": metrics, "checkpoint_seconds": time.perf_counter() - began})

    with folder.newest_checkpoint() as newest:
        result = fit(config, data, report=report, resume_from=newest, rank=rank, world_size=world_size)
    if rank == 0:
        folder.finish(result.history, _summary(result, folder, world_size))


def _summary(result: FitResult, folder: RunFolder, workers: int) -> dict[str, Any]:
    return {
        "run": folder.run,
        "fingerprint": folder.settings().fingerprint,
        "best": result.best,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "stopped_by": result.stopped_by,
        "seconds": result.seconds,
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "parameter_counts": result.parameters,
        "workers": workers,
    }


def _told(error: Exception) -> str:
    """What Ray says in a page, in a line."""
    return " ".join(str(error).split())[:300]


def _fetched(boxed: Any) -> PinnedDataset:
    import ray

    return ray.get(boxed[0])


class _Outbox:
    """Rank zero's way to the driver; nothing is sent by the others."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def __call__(self, message: dict[str, Any]) -> None:
        if self.queue is not None:
            self.queue.put(message)


class _Inbox:
    """The driver's thread that takes messages while `trainer.fit` blocks."""

    def __init__(self, queue: Any, on_report: Callable[[dict[str, Any]], None]) -> None:
        self.queue, self.on_report = queue, on_report
        self.error: dict[str, str] | None = None
        self.reader_error: BaseException | None = None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.queue.put(END)
        self.thread.join(timeout=60)

    def raise_error(self) -> None:
        """The error that stopped the workers, as the class that it was, or the one of the callback."""
        if self.reader_error is not None:
            raise self.reader_error
        if self.error is not None:
            raise getattr(errors, self.error["error"], IsoformerError)(self.error["text"])

    def _read(self) -> None:
        while (message := self.queue.get()) != END:
            if "error" in message:
                self.error = message
            elif self.reader_error is None:
                try:
                    self.on_report(message)
                except Exception as error:  # the caller's callback failed: raised in the caller's thread
                    self.reader_error = error


def _uses_gpu(config: TrainConfig) -> bool:
    if config.device == "cuda" and not has_gpu():
        raise ClusterError("train.device is cuda, but the cluster has no GPU; allowed: auto, cpu")
    return config.device != "cpu" and has_gpu()
