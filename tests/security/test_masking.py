"""No error, and nothing that is shown or saved of an address, holds its secret."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from isoformer.config import FrozenConfig, build, load_yaml, with_overrides
from isoformer.errors import ConfigError, InputError, StorageError
from isoformer.masking import without_password
from isoformer.s3_settings import s3_endpoint
from isoformer.settings import Settings, load_settings
from isoformer.storage import open_storage

CANARY = "c4nary-Pa55word"
ADDRESSES = [
    f"postgresql://anna:{CANARY}@db.example:5432/runs",
    f"mysql+pymysql://anna:@{CANARY}@/with/slash@db.example/runs",
    f"https://{CANARY}@tracker.example/path",
    f"s3://AKIA:{CANARY}@bucket/prefix",
    f"https://b.s3.example/k?X-Amz-Expires=60&X-Amz-Signature={CANARY}&X-Amz-Security-Token={CANARY}",
    f"https://b.s3.example/k?AWSAccessKeyId=A&Signature={CANARY}",
    f"https://blob.example/k?sv=1&sig={CANARY}",
    f"postgresql://db/runs?user=anna&password={CANARY}&sslpassword={CANARY}",
    f"https://api.example/?api_key={CANARY}&page=2",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_shown_without_its_secret(address: str) -> None:
    for text in (address, f"cannot reach {address!r}: refused", f"[{address}]\n{address}"):
        assert CANARY not in without_password(text) and "***" in without_password(text)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://anna@db.example/runs",
        "s3://bucket/prefix/a:b",
        "http://127.0.0.1:5000/#/experiments/1",
        "https://b.example/k?X-Amz-Expires=60&page=2",
        "a@b.example, see x:y",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert without_password(text) == text


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_error_of_ours_repeats_it(address: str, tmp_path: Path) -> None:
    errors = [InputError("no such file", file=address, value=address), StorageError(f"{address}: gone")]
    for error in (*errors, *pickle.loads(pickle.dumps(errors))):  # noqa: S301
        assert CANARY not in str(error) + repr(error)
    with pytest.raises((StorageError, ConfigError)) as refused:
        open_storage(address)
    assert CANARY not in str(refused.value)
    (tmp_path / "broken.yaml").write_text(f"tracking:\n  uri: {address}\n bad: [")
    with pytest.raises(ConfigError) as broken:
        load_yaml(tmp_path / "broken.yaml")
    assert CANARY not in str(broken.value)


@pytest.mark.parametrize("key", ["sweep.storage", "tracking.uri", "root", "nonsense", "run"])
@pytest.mark.parametrize("address", ADDRESSES[:2])
def test_an_override_with_a_secret_is_refused(key: str, address: str) -> None:
    with pytest.raises(ConfigError, match=r"write \$\{NAME\} in place of the secret") as refused:
        load_settings(None, [f"{key}={address}"])
    assert CANARY not in str(refused.value)


def test_a_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STUDY_PASSWORD", CANARY)
    override = "sweep.storage=postgresql://anna:${STUDY_PASSWORD}@db.example/studies"
    (tmp_path / "run.yaml").write_text("sweep: {warm_start: ['postgresql://a:${STUDY_PASSWORD}@h/d#old']}")
    settings = load_settings(tmp_path / "run.yaml", [override])
    assert settings.sweep.storage == f"postgresql+psycopg://anna:{CANARY}@db.example/studies"
    assert settings.sweep.warm_start == (f"postgresql://a:{CANARY}@h/d#old",)
    assert CANARY not in settings.model_dump_json() + repr(settings)
    assert with_overrides({"a": ["$HOME", "${}", 3]}, []) == {"a": ["$HOME", "${}", 3]}


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match=r"the environment variable NO_SUCH_PASSWORD is not set"):
        load_settings(None, ["tracking.uri=postgresql://anna:${NO_SUCH_PASSWORD}@h/d"])


class Where(FrozenConfig):
    place: int


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_wrong_value_is_repeated_without_it(address: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        build(Where, {"place": address})
    assert CANARY not in str(wrong.value)
    with pytest.raises(ConfigError) as unknown:
        build(Settings, {"rot": address})
    assert CANARY not in str(unknown.value)
    with pytest.raises(ConfigError) as nonsense:
        build(Settings, with_overrides({}, [address]))
    assert CANARY not in str(nonsense.value)


@pytest.mark.parametrize("userinfo", [f"anna:{CANARY}", CANARY])
def test_an_endpoint_with_credentials_is_refused(userinfo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{userinfo}@minio.example:9000")
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL must hold no user name") as refused:
        s3_endpoint()
    assert CANARY not in str(refused.value)
