"""What is wrong with a database is said in a sentence with a remedy, and never in SQLAlchemy's."""

import sqlite3
import threading

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from tests.serving.jobs_for_tests import a_job
from undertow.serving.store.migrate import MIGRATIONS
from undertow.serving.store.records import StoreError
from undertow.serving.store.store import Store
from undertow.serving.store.tables import REVISION, VERSION_TABLE, metadata


def refused(url, **options):
    with pytest.raises(StoreError) as error:
        Store.open(url, **options)
    return error.value


def path_of(url):
    return url.removeprefix("sqlite:///")


def test_migrations_make_the_tables_of_this_version(database_url):
    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    assert ScriptDirectory.from_config(config).get_current_head() == REVISION
    engine = create_engine(database_url)
    with engine.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
    engine.dispose()


def test_jobs_of_an_older_version_go_on_in_this_one(tmp_path):
    url, config = f"sqlite:///{tmp_path / 'undertow.db'}", Config()
    engine = create_engine(url)
    config.set_main_option("script_location", MIGRATIONS)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text("INSERT INTO costs (model, device, costs) VALUES ('emoji', 'cpu', '{}')"))
    engine.dispose()
    store = Store.open(url)
    assert store.costs.all() == {}, "nobody knows in how many threads they were measured"
    store.costs.put("emoji", "cpu", "2 threads", {"load": [1.0, 1]})
    store.submit(a_job())
    store.claim("w1", lambda waiting: [waiting[0].id], 30.0)
    assert [job.attempt for job in store.expire_leases("w1")] == [1]
    store.close()


def test_threads_that_open_a_new_database_at_once_make_its_tables_once(memory_folder, request):
    path, failures = memory_folder / f"{request.node.name}.db", []

    def open_it():
        try:
            Store.open(f"sqlite:///{path}").close()
        except Exception as err:
            failures.append(err)

    threads = [threading.Thread(target=open_it) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_database_of_a_newer_version_is_left_alone(database_url):
    engine = create_engine(database_url)
    try:
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
        error = refused(database_url)
        assert error.problem == "newer"
        assert "made by a newer undertow (revision 9999, expected 0005 or older)" in str(error)
        assert "start the version of undertow that made it" in str(error)
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{REVISION}'"))
        engine.dispose()


def test_a_database_of_another_program_is_left_alone(tmp_path):
    connection = sqlite3.connect(tmp_path / "browser.db")
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    error = refused(f"sqlite:///{tmp_path}/browser.db")
    assert error.problem == "foreign"
    assert "bookmarks" in str(error)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("picture.png", "no_database"), ("picture.png/undertow.db", "unwritable"), ("folder", "unwritable")],
)
def test_a_place_that_is_no_database_is_named(tmp_path, name, problem):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG" * 1000)
    (tmp_path / "folder").mkdir()
    error = refused(f"sqlite:///{tmp_path}/{name}")
    assert (error.problem, error.may_retry) == (problem, False)
    assert str(tmp_path) in str(error)
    assert (tmp_path / "picture.png").read_bytes() == b"\x89PNG" * 1000


def test_a_database_that_may_only_be_read_is_refused(sqlite_url):
    error = refused(f"sqlite:///file:{path_of(sqlite_url)}?mode=ro&uri=true")
    assert error.problem == "unwritable"
    assert "give this user the right" in str(error)


@pytest.mark.parametrize(
    "url", ["sqlite://", "mysql://host/db", "nonsense", "postgresql+psycopg://u:secret@/x?host=/nowhere"]
)
def test_urls_that_lead_nowhere_say_what_is_expected(url):
    error = refused(url, patience_s=0.2)
    assert "secret" not in str(error)
    assert error.problem == ("unreachable" if "nowhere" in url else "unknown")


def test_a_full_disk_loses_nothing_and_is_said(sqlite_url, monkeypatch):
    store = Store.open(sqlite_url)
    first = store.submit(a_job()).job.id
    pages = "PRAGMA max_page_count = 1"  # SQLite takes the size that the file has
    store._database.write(lambda connection: connection.execute(text(pages)), "test")
    with pytest.raises(StoreError, match="the disk is full; free some space there") as error:
        store.submit(a_job("x" * 100_000))
    assert (error.value.problem, error.value.may_retry) == ("full", True)
    assert [job.id for job in store.jobs()] == [first]
    store._database.write(lambda connection: connection.execute(text("PRAGMA max_page_count = 1000000")), "test")
    assert store.submit(a_job("x" * 100_000)).created
    store.close()


def test_a_locked_database_is_waited_for_and_then_said(sqlite_url):
    seen = []
    store = Store.open(sqlite_url, patience_s=0.1, observe=lambda *what: seen.append(what))
    other = sqlite3.connect(path_of(sqlite_url), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"another process has locked it for more than 0\.1 s") as error:
        store.submit(a_job())
    assert (error.value.problem, error.value.may_retry) == ("locked", True)
    assert ("busy", "begin", 1) in seen
    assert store.jobs() == []  # readers do not wait
    other.execute("ROLLBACK")
    other.close()
    assert store.submit(a_job()).created
    store.close()


def test_connections_that_a_server_drops_are_replaced(postgres_url):
    store = Store.open(postgres_url)
    store.submit(a_job())
    seen = store.changed(-1, 0.0)
    store.changed(seen, 0.05)
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"))
    engine.dispose()
    assert store.submit(a_job("pear")).created
    assert len(store.jobs()) == 2
    store.close()


def test_a_transaction_whose_connection_is_dropped_is_done_again(postgres_url):
    store, calls = Store.open(postgres_url), []

    def work(connection):
        calls.append("work")
        if len(calls) == 1:
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return "done"

    assert store._database.write(work, "test") == "done"
    assert calls == ["work", "work"]
    store.close()


def test_a_server_that_is_gone_is_said_after_a_bounded_time(postgres_url):
    store = Store.open(postgres_url, patience_s=0.3)
    store._database._engine.dispose()
    gone = create_engine("postgresql+psycopg://postgres@/postgres?host=/nowhere")
    store._database._engine, kept = gone, store._database._engine
    with pytest.raises(StoreError, match="it does not answer") as error:
        store.submit(a_job())
    assert (error.value.problem, error.value.may_retry) == ("unreachable", True)
    store._database._engine = kept
    gone.dispose()
    assert store.submit(a_job()).created
    store.close()
