"""Encoders that learn with the model: regimes, gradients, parameters, saving, workers."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders.tiny import ESM2_CONFIG, NTV2_CONFIG, write_folder
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer, load_trainable
from isoformer.encoders.spec import pack
from isoformer.encoders.transformer_config import transformer_config
from isoformer.errors import ConfigError
from isoformer.model import EncoderInside, IsoFormer, ModelConfig, load_model, save_model
from isoformer.training.config import TrainConfig
from isoformer.training.data import PinnedDataset, load_dataset
from isoformer.training.loop import FitResult, fit, predict
from made_dataset import write_embeddings
from tiny_dataset import write_dataset

PROTEINS = ["MKVLAWW", "MA" * 30, "MKKRST" * 9]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two small encoders with weights of their own."""
    from isoformer.encoders.packed_transformer import random_transformer

    made = {}
    for name, fields in (("esm2", ESM2_CONFIG), ("ntv2-rna", NTV2_CONFIG)):
        config = transformer_config(fields, gated_feed_forward=name != "esm2", file="made")
        state = {f"esm.{key}": tensor for key, tensor in random_transformer(config, 3).state_dict().items()}
        made[name] = str(write_folder(tmp_path_factory.mktemp("encoders") / name, fields, state))
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("joint"))
    write_dataset(folder, shards=2, genes_per_shard=6, window_bases=256)
    write_embeddings(folder, "dna", key="dna.made")
    return folder


def inside(folders: dict[str, str], name: str, **options: Any) -> EncoderInside:
    options.setdefault("resolution", "bins:4")
    return EncoderInside(encoder=EncoderChoice(name=name, weights=folders[name]), **options)


def config_of(folders: dict[str, str], **regimes: dict[str, Any]) -> TrainConfig:
    names = {"protein": "esm2", "rna": "ntv2-rna"}
    encoders = {m: inside(folders, names[m], **options) for m, options in regimes.items()}
    model = ModelConfig(modalities=("dna", *encoders), width=16, heads=4, encoders=encoders, zero_start=False)
    return TrainConfig(
        keys={"dna": "dna.made"}, model=model, epochs=2, batch_size=6, learning_rate=3e-3, gradient_clip=1.0
    )


def data_of(root: str, config: TrainConfig) -> PinnedDataset:
    return load_dataset(root, config.keys, encoders=config.model.encoders)


def encoder_weights(model: IsoFormer, modality: str) -> dict[str, torch.Tensor]:
    return dict(model.inputs[modality].named_parameters())


def start(folders: dict[str, str], root: str, **regimes: dict[str, Any]) -> tuple[FitResult, FitResult]:
    """A fit whose rate is next to nothing, and one that learns."""
    config = config_of(folders, **regimes)
    data = data_of(root, config)
    return fit(config.edited(learning_rate=1e-30), data), fit(config, data)


@pytest.mark.parametrize("name", ["esm2", "ntv2-rna"])
def test_a_trainable_encoder_gives_the_frozen_ones_states_with_gradients(
    folders: dict[str, str], name: str
) -> None:
    choice = EncoderChoice(name=name, weights=folders[name])
    letters = PROTEINS if name == "esm2" else ["ACGTAC" * 5 + "AC", "GGGTTTAAACCC" * 9]
    packed = pack([load_tokenizer(choice)(sequence) for sequence in letters])
    frozen, trainable = load_encoder(choice).encode(packed), load_trainable(choice)
    states = trainable(packed)
    torch.testing.assert_close(states.hidden_PD.detach(), frozen.hidden_PD, rtol=1e-5, atol=1e-5)
    states.hidden_PD.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainable.parameters())


def test_layers_above_the_one_that_is_read_do_not_count_as_trained(folders: dict[str, str]) -> None:
    choice = EncoderChoice(name="esm2", weights=folders["esm2"], layer=1)
    encoder = load_trainable(choice)
    learning = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert any(".layer.0." in name for name in learning)
    assert not any(".layer.1." in name or ".layer.2." in name or "norm_after" in name for name in learning)


def test_an_encoder_that_is_only_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"composition-rna cannot be trained.*Enformer"):
        load_trainable(EncoderChoice(name="composition-rna"))
    with pytest.raises(ConfigError, match=r"set train\.precision"):
        load_trainable(EncoderChoice(name="esm2-tiny", precision="bf16"))


def test_full_tuning_moves_every_weight(folders: dict[str, str], root: str) -> None:
    still, moved = start(folders, root, protein={"regime": "full"})
    before, after = (encoder_weights(result.model, "protein") for result in (still, moved))
    published = load_trainable(EncoderChoice(name="esm2", weights=folders["esm2"])).state_dict()
    for name, tensor in published.items():
        torch.testing.assert_close(before[f"encoder.{name}"].detach(), tensor)
    unmoved = [name for name in before if torch.equal(before[name], after[name])]
    assert not unmoved
    counts = moved.parameters
    spec = get_spec(EncoderChoice(name="esm2", weights=folders["esm2"]))
    assert counts["protein_trained"] == spec.parameter_count + 32 * 16 + 16
    assert counts["all_frozen"] == 0


def test_adapters_leave_the_weights_alone(folders: dict[str, str], root: str) -> None:
    still, moved = start(folders, root, rna={"regime": "lora", "lora_rank": 2, "lora_alpha": 4})
    before, after = (encoder_weights(result.model, "rna") for result in (still, moved))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if "lora_" in n or n.startswith("project")}
    of_a_layer = 2 * (4 * (32 + 32) + (32 + 96) + (48 + 32))  # rank x (attention, gated in, out)
    assert moved.parameters["rna_trained"] == 3 * of_a_layer + 32 * 16 + 16
    assert (
        moved.parameters["rna_frozen"]
        == get_spec(EncoderChoice(name="ntv2-rna", weights=folders["ntv2-rna"])).parameter_count
    )


def test_from_scratch_starts_at_the_seeds_weights(folders: dict[str, str], root: str) -> None:
    config = config_of(folders, protein={"regime": "scratch"}).edited(learning_rate=1e-30)
    data = data_of(root, config)
    assert data.encoder_trained["protein"] == "from scratch"
    first, again, other = (fit(config.edited(seed=seed), data).model for seed in (0, 0, 1))
    name = "encoder.network.encoder.layer.0.LayerNorm.weight"
    matrix = "encoder.network.encoder.layer.0.output.dense.weight"
    weights = [encoder_weights(model, "protein") for model in (first, again, other)]
    assert torch.equal(weights[0][matrix], weights[1][matrix])
    assert not torch.equal(weights[0][matrix], weights[2][matrix])
    published = load_trainable(EncoderChoice(name="esm2", weights=folders["esm2"]))
    assert not torch.equal(weights[0][matrix], published.state_dict()[matrix.removeprefix("encoder.")])
    assert torch.equal(weights[0][name], torch.ones_like(weights[0][name]))


def test_recomputed_activations_give_the_same_curve(folders: dict[str, str], root: str) -> None:
    config = config_of(folders, protein={}, rna={})
    again = config_of(folders, protein={"gradient_checkpointing": True}, rna={"gradient_checkpointing": True})
    data = data_of(root, config)
    first, second = fit(config, data), fit(again, data)
    assert first.history[-1]["train_loss"] == pytest.approx(second.history[-1]["train_loss"], rel=1e-5)
    assert second.model.state_dict().keys() == first.model.state_dict().keys()


def test_accumulated_parts_follow_the_whole_batch(folders: dict[str, str], root: str) -> None:
    config = config_of(folders, protein={}, rna={"regime": "lora"})
    data = data_of(root, config)
    whole, parts = fit(config, data), fit(config.edited(micro_batch_size=2), data)
    for theirs, ours in zip(whole.history, parts.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-3)


def test_bf16_is_close_and_keeps_the_weights_whole(folders: dict[str, str], root: str) -> None:
    config = config_of(folders, protein={})
    data = data_of(root, config)
    full, half = fit(config, data), fit(config.edited(precision="bf16"), data)
    assert half.history[0]["train_loss"] == pytest.approx(full.history[0]["train_loss"], rel=0.05)
    assert half.history[0]["train_loss"] != full.history[0]["train_loss"]
    assert {tensor.dtype for tensor in half.model.state_dict().values()} == {torch.float32}


def test_each_part_learns_at_its_own_rate(folders: dict[str, str], root: str) -> None:
    config = config_of(folders, protein={}, rna={}).edited(learning_rates={"protein": 1e-30, "head": 1e-2})
    data = data_of(root, config)
    started = fit(config.edited(learning_rate=1e-30, learning_rates={}), data).model
    tuned = fit(config, data).model
    assert torch.equal(
        encoder_weights(started, "protein")["project.weight"],
        encoder_weights(tuned, "protein")["project.weight"],
    )
    assert not torch.equal(
        encoder_weights(started, "rna")["project.weight"], encoder_weights(tuned, "rna")["project.weight"]
    )
    with pytest.raises(ConfigError, match="learning_rates of"):
        config.edited(model=config.model.with_modalities(("dna", "rna")))


def test_a_saved_model_needs_no_folder_beside_it(
    folders: dict[str, str], root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(folders, protein={"regime": "lora"}, rna={"gradient_checkpointing": True})
    data = data_of(root, config)
    model = fit(config.edited(epochs=1), data).model
    save_model(model, tmp_path / "model.safetensors")
    hidden = {name: Path(path).rename(tmp_path / name) for name, path in folders.items()}
    try:
        loaded = load_model(tmp_path / "model.safetensors")
        rows = data.rows("test")
        np.testing.assert_array_equal(predict(loaded, data, rows), predict(model, data, rows))
    finally:
        for name, path in hidden.items():
            path.rename(folders[name])


def test_a_batch_gives_each_transcript_what_it_gets_alone(folders: dict[str, str], root: str) -> None:
    config = config_of(folders, protein={}, rna={"resolution": "tokens"})
    data = data_of(root, config)
    model = fit(config.edited(epochs=1), data).model
    rows = np.arange(len(data))
    alone, together = predict(model, data, rows, batch_size=1), predict(model, data, rows, batch_size=24)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    assert (data.tokens["protein"].sequence_of_N < 0).any()


def test_resume_of_a_joint_fit_is_exact(folders: dict[str, str], root: str, tmp_path: Path) -> None:
    config = config_of(folders, protein={"regime": "lora", "lora_dropout": 0.1}, rna={}).edited(
        ema_decay=0.9, micro_batch_size=2, learning_rates={"rna": 1e-4}, epochs=3
    )
    data = data_of(root, config)

    def stopped(metrics: dict[str, float], write: Any) -> None:
        if metrics["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, data, report=stopped, checkpoint_dir=tmp_path / "checkpoint")
    resumed = fit(config, data, resume_from=tmp_path / "checkpoint")
    undisturbed = fit(config, data)
    assert [e["train_loss"] for e in resumed.history] == [e["train_loss"] for e in undisturbed.history]
    for name, tensor in undisturbed.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_workers_follow_one(folders: dict[str, str], root: str, tmp_path: Path, parallel: str) -> None:
    config = config_of(folders, protein={}, rna={"regime": "lora"}).edited(
        batch_size=7, micro_batch_size=2, parallel=parallel
    )
    data = data_of(root, config)
    alone = fit(config, data)
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (config.model_dump(mode="json"), root, port, str(tmp_path / "checkpoint"), queue)
    workers = [context.Process(target=worker, args=(rank, *arguments)) for rank in range(2)]
    for process in workers:
        process.start()
    history, resumed, predicted = queue.get(timeout=200)
    for process in workers:
        process.join(timeout=60)
        assert process.exitcode == 0
    for theirs, ours, later in zip(alone.history, history, resumed, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-3)
        assert later["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-6)
    np.testing.assert_allclose(predicted, predict(alone.model, data, data.rows("test")), rtol=1e-3, atol=1e-3)


def worker(rank: int, config: dict[str, Any], root: str, port: int, checkpoint: str, queue: Any) -> None:
    """One of two: a whole fit, and one that goes on from the checkpoint after the first epoch."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    train = TrainConfig.model_validate(config)
    data = data_of(root, train)
    kept = Path(checkpoint)

    def keep(metrics: dict[str, float], write: Any) -> None:
        if write is not None and metrics["epoch"] == 0:
            write(kept)

    result = fit(train, data, report=keep, rank=rank, world_size=2)
    torch.distributed.barrier()
    resumed = fit(train, data, resume_from=kept, rank=rank, world_size=2)
    if rank == 0:
        queue.put((result.history, resumed.history, predict(result.model, data, data.rows("test"))))
        queue.close()
        queue.join_thread()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
