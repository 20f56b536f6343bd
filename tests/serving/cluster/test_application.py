"""What is decided before Ray is there: settings, paths, resources, the manifest, and that Ray is missed by name."""

import os
from pathlib import Path

import pytest
import yaml

from undertow import InvalidInput, MissingDependency
from undertow.serving.cluster import application
from undertow.serving.cluster.application import cluster_settings, placed, require_for_ray, resources
from undertow.serving.cluster.running import own_files
from undertow.serving.settings import ServerSettings

DATABASE = "postgresql+psycopg://me@here/undertow"
MANIFEST = Path(__file__).parents[3] / "docs/deploy/rayservice.yaml"


def test_a_cluster_is_public_whatever_is_said():
    """Its proxy is reached by others: without keys nobody may draw."""
    assert cluster_settings({"database": DATABASE, "host": "127.0.0.1"}).is_public


def test_a_cluster_does_not_share_sqlite(monkeypatch):
    monkeypatch.delenv("UNDERTOW_DATABASE", raising=False)
    with pytest.raises(InvalidInput, match="PostgreSQL, where replicas may be on several machines"):
        cluster_settings({})
    monkeypatch.setenv("UNDERTOW_DATABASE", DATABASE)
    assert cluster_settings({}).database == DATABASE


@pytest.mark.parametrize("devices", [("cuda:0",), ("cpu", "cuda")])
def test_which_device_a_replica_has_is_for_ray_to_say(devices):
    with pytest.raises(InvalidInput, match="one kind of device"):
        require_for_ray(ServerSettings(devices=devices))


def test_a_replica_on_a_gpu_reserves_one():
    assert resources("cuda") == {"num_cpus": 1, "num_gpus": 1}
    assert resources("cpu") == {"num_cpus": 1}


def test_paths_hold_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").touch()
    found = placed(ServerSettings(models={"mine": "mine.safetensors", "emoji": "emoji"}, adapters=(Path("a"),)))
    assert found.data == tmp_path / "undertow-data"
    assert found.adapters == (tmp_path / "a",)
    assert found.models == {"mine": str(tmp_path / "mine.safetensors"), "emoji": "emoji"}


def test_ray_is_missed_by_name(monkeypatch):
    monkeypatch.setitem(os.sys.modules, "ray", None)  # type: ignore[attr-defined]
    with pytest.raises(MissingDependency, match=r"pip install 'undertow\[ray\]'"):
        application.build({"database": DATABASE})


def test_a_ray_of_our_own_leaves_nothing_behind():
    environment = {"RAY_AUTH_MODE": "disabled"}
    with own_files(environment):
        folder = Path(environment["RAY_TMPDIR"])
        assert folder.is_dir()
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert environment["RAY_AUTH_MODE"] == "disabled"
        assert len(environment["RAY_AUTH_TOKEN"]) == 64
    assert not folder.exists()
    assert environment == {"RAY_AUTH_MODE": "disabled"}


def test_a_cluster_that_runs_already_keeps_its_own_places():
    environment = {"RAY_ADDRESS": "10.0.0.1:6379"}
    with own_files(environment):
        assert environment == {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_USAGE_STATS_ENABLED": "0"}


def test_the_manifest_serves_what_there_is(monkeypatch):
    monkeypatch.setenv("UNDERTOW_DATABASE", DATABASE)
    manifest = yaml.safe_load(MANIFEST.read_text())
    assert manifest["kind"] == "RayService"
    (served,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    module, _, name = served["import_path"].partition(":")
    assert module == application.__name__
    assert getattr(application, name) is application.build
    settings = cluster_settings(served["args"])
    pods = [manifest["spec"]["rayClusterConfig"]["headGroupSpec"]]
    pods += manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert settings.most_replicas == pods[1]["maxReplicas"]
    for pod in pods:
        spec = pod["template"]["spec"]
        (container,) = spec["containers"]
        assert {one["name"] for one in container["env"]} >= {application.DATABASE}
        assert [one["mountPath"] for one in container["volumeMounts"]] == [str(settings.data)]
        assert spec["terminationGracePeriodSeconds"] > settings.grace_s
