import dataclasses

import pytest

from service.errors import InvalidSettingError
from service.settings import Settings


def test_the_embedded_service_needs_no_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_env({})
    assert settings.data_dir == tmp_path / "data"
    assert settings.database_url == f"sqlite:///{tmp_path}/data/lustrate.db"
    assert settings.broker_url == "filesystem://"
    assert settings.queue_dir == tmp_path / "data" / "queue"
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert list(tmp_path.iterdir()) == [], "reading settings makes nothing"


def test_every_setting_is_read():
    settings = Settings.from_env(
        {
            "LUSTRATE_DATA_DIR": "/srv/l",
            "LUSTRATE_DATABASE_URL": "postgresql://u@h/d",
            "LUSTRATE_BROKER_URL": "redis://h/0",
            "LUSTRATE_HOST": "0.0.0.0",
            "LUSTRATE_PORT": "9000",
            "LUSTRATE_ALLOW_REMOTE": "yes",
            "LUSTRATE_ALLOWED_HOSTS": "A.example, b.example,",
            "LUSTRATE_MAX_MODEL_BYTES": "1",
            "LUSTRATE_MAX_DATASET_BYTES": "2",
            "LUSTRATE_LEASE_SECONDS": "1.5",
            "LUSTRATE_REAP_SECONDS": "2.5",
            "LUSTRATE_MAX_ATTEMPTS": "4",
            "LUSTRATE_JOB_DEADLINE_SECONDS": "5",
            "LUSTRATE_JOB_MEMORY_BYTES": "6",
            "LUSTRATE_JOB_THREADS": "7",
            "LUSTRATE_REQUIRE_PROTECTIONS": "rlimits, no_network,",
        }
    )
    values = [str(value) for value in dataclasses.astuple(settings)]
    assert values == [
        *("/srv/l", "postgresql://u@h/d", "redis://h/0", "0.0.0.0", "9000", "True", "('a.example', 'b.example')"),
        *("1", "2", "1.5", "2.5", "4", "5.0", "6", "7", "('rlimits', 'no_network')"),
    ]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com", "127.0.0.1.example.com"])
def test_an_address_that_others_reach_is_refused_without_an_override(host):
    with pytest.raises(InvalidSettingError, match="LUSTRATE_ALLOW_REMOTE"):
        Settings.from_env({"LUSTRATE_HOST": host})
    assert Settings.from_env({"LUSTRATE_HOST": host, "LUSTRATE_ALLOW_REMOTE": "1"}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_override(host):
    assert Settings.from_env({"LUSTRATE_HOST": host}).host == host


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "x"),
        ("PORT", "70000"),
        ("LEASE_SECONDS", "0"),
        ("LEASE_SECONDS", "nan"),
        ("REAP_SECONDS", "inf"),
        ("MAX_ATTEMPTS", "0"),
        ("MAX_MODEL_BYTES", "2GB"),
        ("JOB_THREADS", "-1"),
        ("ALLOW_REMOTE", "maybe"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(InvalidSettingError, match=f"LUSTRATE_{name}"):
        Settings.from_env({f"LUSTRATE_{name}": value})
