"""`undertow serve` and `undertow keys`: what is refused before anything starts, and what is said."""

import socket
from dataclasses import replace

import pytest

from undertow.cli import main
from undertow.memory.machine import this_machine
from undertow.serving.store.store import Store


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments: str) -> str:
    """The one sentence of a refusal."""
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    return error


def test_it_says_what_a_person_needs(capsys, tmp_path):
    """Address, models, keys, where the data is, and a command that draws."""
    assert main(["serve", "--port", "0", "--check", "emoji", "second=emoji"]) == 0
    said = capsys.readouterr().out
    address = said.split()[3]
    assert address.startswith("http://127.0.0.1:")
    assert not address.endswith(":0")
    assert "emoji, second" in said
    assert str(tmp_path / "undertow-data") in said
    assert "undertow keys add NAME" in said
    assert f"curl -s {address}/v1/jobs" in said
    assert main(["keys", "add", "ann"]) == 0
    assert main(["serve", "--port", "0", "--check", "--host", "0.0.0.0"]) == 0
    said = capsys.readouterr().out
    assert "ann" in said
    assert "Authorization: Bearer KEY" in said


@pytest.mark.parametrize("verb", ["serve", "worker"])
@pytest.mark.parametrize(
    ("asked", "can", "said"),
    [
        ("bf16", True, "precision bf16\n"),
        ("bf16", False, "precision bf16, computed in float32: this processor has no instructions for bf16\n"),
        ("f16", True, "which processors imitate, many times slower than f32; autoencoders in float32\n"),
    ],
)
def test_it_says_what_models_compute_in(capsys, monkeypatch, verb, asked, can, said):
    machine = replace(this_machine(), bfloat16=can)
    monkeypatch.setattr("undertow.memory.subjects.this_machine", lambda: machine)
    port = ("--port", "0") if verb == "serve" else ()
    assert main([verb, *port, "--check", "--precision", asked]) == 0
    assert said in capsys.readouterr().out


def test_a_port_in_use_is_refused(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in refused(capsys, "--port", port)


def test_a_public_address_without_keys_is_refused_with_the_command_that_makes_one(capsys):
    assert "undertow keys add NAME" in refused(capsys, "--host", "0.0.0.0", "--port", "0")


def test_a_folder_that_cannot_be_written_is_refused(capsys):
    assert "--data" in refused(capsys, "--port", "0", "--data", "/proc/undertow")


def test_a_file_in_place_of_the_folder_is_refused(capsys, tmp_path):
    (tmp_path / "data").write_text("")
    assert "--data" in refused(capsys, "--port", "0", "--data", "data")


def test_data_of_a_newer_version_is_refused(capsys, tmp_path):
    import sqlite3

    Store.open(f"sqlite:///{tmp_path / 'undertow.db'}").close()
    with sqlite3.connect(tmp_path / "undertow.db") as database:
        (table,) = database.execute(
            "SELECT name FROM sqlite_master WHERE name LIKE '%version%' AND type = 'table'"
        ).fetchone()
        database.execute(f"UPDATE {table} SET version_num = '9999'")
    database.close()
    assert "newer" in refused(capsys, "--port", "0", "--data", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["emojy"], "'emoji'"),
        (["x=no-such.safetensors"], "no-such.safetensors"),
        (["--device", "gpu"], "--device"),
        (["--device", "xpu"], "a device of this machine"),
        (["--database", "mysql://x"], "mysql"),
        (["--budget", "much"], "--budget"),
        (["--budget", "1MB"], "which a picture of emoji needs"),
        (["--adapters", "no-such-folder"], "a folder that is there"),
        (["--webhooks"], "webhook_secret"),
        (["--port", "-1"], "from 0 to 65535"),
    ],
)
def test_what_cannot_be_served_is_refused(capsys, arguments, word):
    assert word in refused(capsys, "--port", "0", *arguments)


def test_a_worker_is_refused_what_a_service_is(capsys):
    assert main(["worker", "--check", "--budget", "1MB"]) == 2
    assert "which a picture of emoji needs" in capsys.readouterr().err


def test_settings_come_from_the_table_of_the_file(capsys, tmp_path):
    (tmp_path / "undertow.toml").write_text('[serve]\nport = 0\ndata = "kept"\nwebhooks = true\nwebhook_secret = "s"\n')
    assert main(["serve", "--check"]) == 0
    assert str(tmp_path / "kept") in capsys.readouterr().out
    (tmp_path / "undertow.toml").write_text("[serve]\nprot = 1\n")
    assert "'port'" in refused(capsys)
    (tmp_path / "undertow.toml").write_text('[serve]\nport = "x"\n')
    where = "port in [serve] of undertow.toml is 'x', expected a number, which text is not"
    assert where in " ".join(refused(capsys).split())
    assert "port is -1" in " ".join(refused(capsys, "--port", "-1").split()), "what was typed is not the file's"


def test_an_id_stays_whole_where_there_are_few_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["keys", "add", "a-key-of-somebody-with-a-long-name", "--per-minute", "9", "--max-queued", "5"]) == 0
    id = capsys.readouterr().err.partition("(")[2].partition(")")[0]
    assert main(["keys", "list"]) == 0
    assert id in capsys.readouterr().out


def test_a_key_is_printed_once_listed_and_revoked(capsys):
    assert main(["keys", "add", "ann", "--scope", "read", "--per-minute", "9"]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("ut_")
    assert len(secret) > 40
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert "ann" in listed
    assert "9 a minute" in listed
    assert secret not in listed
    assert main(["keys", "add", "ann"]) == 2
    assert "no key has" in capsys.readouterr().err
    assert main(["keys", "revoke", "an"]) == 2
    assert "'ann'" in capsys.readouterr().err
    assert main(["keys", "revoke", "ann"]) == 0
    assert "revoked ann" in capsys.readouterr().out
    assert main(["keys", "revoke", "ann"]) == 2
