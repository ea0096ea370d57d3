"""Databases that cannot be used: one message with cause and remedy, no password in it, and nothing changed."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest
from postgres_server import Server, programs, running

from moetune.autotune.database import parse_database
from moetune.autotune.postgres import look_into, open_postgres
from moetune.autotune.shelf import Tables
from moetune.errors import ExitCode, MoetuneError

_numbers = count()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed and `make postgres` could not get it")
    with running(found) as started:
        yield started


@pytest.fixture
def name(server: Server) -> str:
    """An empty database."""
    name = f"db_{next(_numbers)}"
    server.new(name)
    return name


def refusal(url: str) -> MoetuneError:
    with pytest.raises(MoetuneError) as caught:
        open_postgres(parse_database(url))
    assert caught.value.code is ExitCode.STORAGE
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("url", "shown", "password"),
    [
        ("postgresql://me:secret@host:5433/db", "postgresql://me@host:5433/db", "secret"),
        ("postgres://host/db?sslmode=require&password=secret", "postgresql://host/db", "secret"),
        (" postgresql://me:se%40cret@host/db ", "postgresql://me@host/db", "se@cret"),
        ("postgresql:///db?host=/run/postgresql", "postgresql:///db", None),
    ],
)
def test_a_database_is_shown_without_its_password(url: str, shown: str, password: str | None) -> None:
    """Neither by name nor when the value itself is printed."""
    database = parse_database(url)
    assert database.shown == shown
    assert "cret" not in repr(database)
    assert database.url.startswith("postgresql+psycopg://")
    assert database.hide(f"he said {password}") == ("he said ***" if password else "he said None")


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:secret@host/db",
        "sqlite:///secret.db",
        "secret",
        "",
        "postgresql://me:secret@host",
        "postgresql://me:secret@host/",
        "postgresql://me:pa/secret@host/db",
        "postgresql://me:pa#secret@host/db",
        "postgresql://me:pa?secret@host/db",
        "postgresql://me:secret@host:port/db",
    ],
)
def test_what_is_no_postgresql_url_is_refused_without_repeating_it(url: str) -> None:
    """A password with characters of its own meaning is the usual reason: the remedy says how to write them."""
    with pytest.raises(MoetuneError) as caught:
        parse_database(url)
    assert caught.value.code is ExitCode.USAGE
    assert "secret" not in str(caught.value)
    assert "postgresql://" in caught.value.remedy


def test_an_unreachable_server_is_named(server: Server) -> None:
    """Host and port, at once, not after a search's patience."""
    error = refusal("postgresql://me:secret@127.0.0.1:1/db")
    assert "127.0.0.1:1/db" in error.cause
    assert "refused" in error.cause
    assert "secret" not in str(error)


def test_a_wrong_password_or_database_is_what_the_server_says(server: Server, name: str) -> None:
    """The password that was tried is not shown."""
    error = refusal(server.url(name, password="mistyped"))  # noqa: S106
    assert "password authentication failed" in error.cause
    assert "mistyped" not in str(error)
    assert '"nowhere" does not exist' in refusal(server.url("nowhere")).cause


def test_another_programs_database_is_left_alone(server: Server, name: str) -> None:
    """Its tables are named, and none is added."""
    server.sql("CREATE TABLE invoices (total int)", name)
    assert "invoices" in refusal(server.url(name)).cause
    with pytest.raises(MoetuneError, match="invoices"):
        look_into(parse_database(server.url(name)))
    assert server.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name) == "1"


@pytest.mark.parametrize("version", ["v3.0.0.a", "v99.0.0"])
def test_another_schema_is_refused_and_left_as_it_is(server: Server, name: str, version: str) -> None:
    """Tables of an older and of a newer optuna."""
    open_postgres(parse_database(server.url(name))).engine.dispose()
    server.sql(f"UPDATE alembic_version SET version_num = '{version}'", name)  # noqa: S608
    error = refusal(server.url(name))
    assert "schema" in error.cause
    assert "optuna" in error.remedy
    assert server.sql("SELECT version_num FROM alembic_version", name) == version


def test_a_user_who_may_only_read_may_look(server: Server, name: str) -> None:
    """`study list` works, a search is refused with what to grant."""
    open_postgres(parse_database(server.url(name))).create_new_study([], "0" * 24)
    server.sql(f"CREATE ROLE reader_{name} LOGIN PASSWORD 'reads'", name)
    server.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader_{name}", name)
    database = parse_database(server.url(name, f"reader_{name}", "reads"))
    assert Tables(database).read().studies == ()
    with pytest.raises(MoetuneError, match=r"(?s)not let us write.*GRANT"):
        Tables(database).drop("0" * 24)


def test_looking_into_an_empty_database_changes_nothing(server: Server, name: str) -> None:
    """No tables are made before there is something to keep."""
    database = parse_database(server.url(name))
    assert Tables(database).read().studies == ()
    assert server.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name) == "0"


def test_a_password_may_hold_any_character(server: Server, name: str) -> None:
    """Braces, which optuna takes for a template, and what a URL must escape."""
    server.sql(f"CREATE ROLE odd_{name} SUPERUSER LOGIN PASSWORD 'a{{b}}@/%#?'", name)
    database = parse_database(server.url(name, f"odd_{name}", "a{b}%40%2F%25%23%3F"))
    open_postgres(database).engine.dispose()
    assert server.sql("SELECT count(*) FROM studies", name) == "0"


def test_studies_of_other_programs_that_use_optuna_are_passed_over(server: Server, name: str) -> None:
    """They are neither shown nor found, so that they cannot be dropped."""
    storage = open_postgres(parse_database(server.url(name)))
    for study in ("their-study", "a" * 24):
        storage.create_new_study([], study)
    assert Tables(parse_database(server.url(name))).read().studies == ()


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    error = refusal("postgresql://me:secret@127.0.0.1:1/db")
    assert "driver" in error.cause
    assert "moetune[postgres]" in error.remedy


def test_patience_begins_with_the_search(server: Server) -> None:
    """What cannot be reached at the start is not waited for."""
    database = replace(parse_database("postgresql://me@127.0.0.1:1/db"), patience_s=3600.0)
    with pytest.raises(MoetuneError, match="refused"):
        open_postgres(database)
