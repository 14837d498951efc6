"""The doors of the configuration: YAML, `--set`, search spaces, names of encoders, addresses, keys.

An accepted configuration is written out and read back: it must be the same one. An address must mean the
place that it spells, and a password in it is shown nowhere.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import optuna

from fuzz.door import Door, Skip
from isoformer.config import build, load_yaml, to_yaml
from isoformer.encoders.registry import EncoderChoice, get_spec, load_tokenizer
from isoformer.encoders.weights_store import hub_repository, located
from isoformer.errors import EncoderError
from isoformer.schema import MODALITIES
from isoformer.settings import Settings, load_settings
from isoformer.storage import open_storage
from isoformer.sweep.config import SweepConfig
from isoformer.sweep.default_space import default_space
from isoformer.sweep.space import SearchSpace
from isoformer.training.config import TrainConfig

SETTINGS = b"""root: data
run: final
prepare: {annotation: a.gtf.gz, reference: g.fa, expression: e.tsv, split: {method: hash, test: 0.2}}
embed:
  encoders: [{name: esm2-tiny, resolution: "bins:16"}, {name: composition-rna}]
  actors: 2
train: {learning_rate: 1.0e-3, epochs: 3, model: {fusion: concat, modalities: [dna, rna]}}
sweep: {trials: 4, hours: 1.5, keys: {rna: [k1, k2]}}
tracking: {uri: "postgresql://user:secret@host/db"}
"""
OVERRIDES = (
    b"train.learning_rate=0.5\nroot=s3://bucket/prefix\ntrain.model.modalities=[rna, protein]\nrun=again\n"
)
SPACE = b"""fusion: {path: model.fusion, choices: [cross_attention, concat]}
heads: {path: model.heads, choices: [1, 2, 4], when: {fusion: [cross_attention]}}
learning_rate: {path: learning_rate, low: 1.0e-4, high: 1.0e-2, log: true, points: 4}
batch: {path: batch_size, low: 8, high: 64}
"""
KEYS = json.dumps(
    {"dna": ["a.1.pooled.f16.x", "a.1.bins-4.f16.y"], "rna": ["b.1.pooled.f16.x", "b.1.bins-4.f16.y"]}
)
CHOICES = (
    {"name": "esm2-tiny"},
    {"name": "composition-dna"},
    {"name": "ntv2-tiny-rna", "layer": 1, "average_layers": 2},
    {"name": "esm2", "random_seed": 3, "weights": None},
    {"name": "hf:some/thing", "modality": "rna"},
    {"name": "xpresso", "weights": "x.h5"},
    {"name": "../../etc", "weights": "../.."},
)
YAML_WORDS = (
    b"&a ",
    b"*a",
    b"!!python/object/apply:os.system ",
    b"!!binary ",
    b"!!timestamp ",
    b"<<: ",
    b"? ",
    b"- ",
    b": ",
    b"{",
    b"[",
    b"null",
    b"true",
    b".nan",
    b".inf",
    b"-1",
    b"1e999",
    b"0",
    b"9" * 30,
    b"1:30",
    b"2024-99-99",
    b"\0",
    b"\xff",
    b"\xe2\x80\xa8",
    b"\x1b[31m",
    b"bins:0",
    b"../",
    b"s3://",
    b"---\n",
    b"%YAML 9.9\n",
    b"prepare",
    b"model",
    b"choices",
    b"when",
    b"low",
    b"high",
    b"points",
    b"labels",
    b"path",
    b"encoders",
    b"\xef\xbb\xbf",
    b"'",
    b'"',
)


def settings(data: bytes, folder: Path) -> None:
    """A whole configuration file."""
    (folder / "run.yaml").write_bytes(data)
    _check_settings(load_settings(folder / "run.yaml"), folder)


def overrides(data: bytes, folder: Path) -> None:
    """Each line is one `--set`."""
    _check_settings(load_settings(None, data.decode("utf-8", "replace").split("\n")[:-1]), folder)


def _check_settings(found: Settings, folder: Path) -> None:
    (folder / "resolved.yaml").write_text(to_yaml(found), encoding="utf-8")
    again = build(Settings, load_yaml(folder / "resolved.yaml"))
    assert again.model_dump_json() == found.model_dump_json(), "resolved configuration reads as another one"
    assert len(repr(found)) < 1 << 20, "a configuration of a megabyte"


def space(data: bytes, folder: Path) -> None:
    """A search space: drawn from, and tried on the training configuration."""
    (folder / "space.yaml").write_bytes(data)
    found = build(SweepConfig, {"space": load_yaml(folder / "space.yaml")}, origin="space.yaml").space
    assert found is not None
    found.check(TrainConfig())
    _check_draws(found)


def spaces_of_keys(data: bytes, folder: Path) -> None:
    """The default space over any embedding datasets."""
    try:
        keys = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Skip from error
    checked = build(SweepConfig, {"keys": keys}, origin="keys").keys
    if not checked or not all(checked.values()):
        raise Skip
    found = default_space(checked)
    _check_draws(found)
    listed = {key for names in checked.values() for key in names}
    for values in islice(found.combinations(), 200):
        used = TrainConfig(keys={m: names[0] for m, names in checked.items()})
        assert set(found.applied(used, values).keys.values()) <= listed, "a key that nobody gave"


def _check_draws(found: SearchSpace) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(2):
        values = found.draw(study.ask())
        for name, value in values.items():
            parameter = found.root[name]
            if parameter.choices:
                assert value in parameter.choices, f"{name}: {value!r} is no choice"
            else:
                assert parameter.low <= value <= parameter.high, f"{name}: {value!r} is out of its range"  # type: ignore[operator]


def encoders(data: bytes, folder: Path) -> None:
    """An encoder's name and options, with and without weights."""
    try:
        described = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Skip from error
    if not isinstance(described, dict):
        raise Skip
    choice = build(EncoderChoice, described, origin="encoder")
    repository = hub_repository(choice.name)
    assert repository is None or ".." not in repository.split("/"), "a repository that leads elsewhere"
    spec = get_spec(located(choice, open_storage(folder / "root")))
    assert spec.modality in MODALITIES and spec.width > 0 and spec.max_tokens > 0
    try:
        tokens = load_tokenizer(choice)("ACGTACGTACGT")
    except EncoderError:
        return
    assert 0 < len(tokens) <= spec.max_tokens or spec.reads_windows


def seeds_of(described: tuple[dict[str, Any], ...]) -> tuple[bytes, ...]:
    return tuple(json.dumps(one).encode() for one in described)


def bombs() -> tuple[bytes, ...]:
    """YAML that is small on disk and large, or endless, in memory."""
    laughs = b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(
        b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)
    )
    mappings = b"a0: &a0 {x: 1}\n" + b"".join(
        b"a%d: &a%d {%s}\n" % (n, n, b", ".join(b"k%d: *a%d" % (k, n - 1) for k in range(9)))
        for n in range(1, 9)
    )
    return (
        laughs,
        mappings,
        b"root: &a [*a]\n",
        b"train: &a {model: *a}\n",
        b"root: " + b"[" * 5000,
        b"{" * 3000,
        b"root: " + b"9" * 6000,
        b"run: 2024-13-45\n",
        b"root: a\nroot: b\n",
        b"train: {epochs: 1}\ntrain: {epochs: 2}\n",
        b"root: !!python/object/apply:os.system ['touch " + b"code-was-run']\n",
        b"? [a]\n: b\n",
        b"1: 2\n",
        b"null: 3\n",
        b"root: !!binary ////\n",
        b"root: " + b"x" * 20_000,
        b"train: " + b"x" * 20_000,
        b'root: "\\0"\n',
        b"sweep: {keys: {rna: [" + b"k, " * 2_000 + b"]}}\n",
        b"root: 1e400\n",
        b"train: {learning_rate: .inf}\n",
        b"train: {learning_rate: .nan}\n",
    )


SPACE_BOMBS = (
    b"a: {path: batch_size, low: 1, high: 1000000000, points: 1000000000}\n",
    b"a: {path: learning_rate, low: 1.0e-300, high: 1.0e+300, points: 9, log: true}\n",
    b"a: {path: learning_rate, low: .nan, high: 1.0}\n",
    b"a: {path: learning_rate, low: 0.1, high: .inf}\n",
    b"a: {path: epochs, low: 1, high: " + b"9" * 400 + b"}\n",
    b"a: {path: epochs, low: 1, high: " + b"9" * 400 + b", log: true, points: 3}\n",
    b"".join(
        b"p%d: {path: epochs, choices: [%s]}\n" % (n, b", ".join(b"%d" % c for c in range(1, 11)))
        for n in range(3)
    ),
    b"a: {path: model.fusion, choices: [concat, concat]}\n",
    b"a: {path: epochs, choices: [1, true, 1.0]}\n",
    b"a: {path: model.., choices: [1]}\n",
)

DOORS = (
    Door("settings", settings, (SETTINGS, b"", b"root: x\n", *bombs()), YAML_WORDS, ("run.yaml",)),
    Door(
        "set",
        overrides,
        (
            OVERRIDES,
            b"run=x\n",
            b"=\n",
            b"a.b.c.d.e=1\n",
            b"root..x=1\n",
            b"train=[1\n",
            b"root=" + b"[" * 4000 + b"\n",
            b"train=&a [*a]\n",
            b".=1\n",
            b"root.x=1\n",
            b"run=2024-99-99\n",
        ),
        (*YAML_WORDS, b".", b"=", b"\n"),
        ("--set", "configuration"),
    ),
    Door(
        "search space",
        space,
        (SPACE, *SPACE_BOMBS, *bombs()[:9]),
        YAML_WORDS,
        ("space", "model.."),
        seconds=30,
    ),
    Door(
        "default space",
        spaces_of_keys,
        (KEYS.encode(), b'{"rna": ["a", "b"], "dna": ["c"]}', b'{"rna": ["a", "a"]}', b'{"rna": []}'),
        (b"null", b"[]", b"{}", b".", b"pooled", b"protein", b"\\u0000"),
        ("keys", "parameter", "choices"),
    ),
    Door(
        "encoder choice",
        encoders,
        seeds_of(CHOICES),
        (
            b"null",
            b"-1",
            b"hf:",
            b"..",
            b"/",
            b"\\u0000",
            b"modality",
            b"layer",
            b"max_tokens",
            b"windows",
            b"9" * 30,
            b"weights",
            b"s3:",
            b"~",
        ),
        ("encoder", "weights", "resolution"),
    ),
)
