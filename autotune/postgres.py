"""Opens a study's database, tells what is wrong with one, and outlasts its restarts."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from moetune.autotune.database import Database
from moetune.errors import ExitCode, MoetuneError

OnDeath = Callable[[Study, FrozenTrial], None]
_CONNECT_S = 10
_OURS = frozenset({"studies", "trials", "trial_heartbeats", "version_info"})
_LOCK = int.from_bytes(b"moetune")
# PostgreSQL's codes for "read-only transaction" and "insufficient privilege".
_READ_ONLY = ("25006", "42501")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_GONE = "Record does not exist."  # what optuna says of a study that was dropped


def open_postgres(database: Database, on_death: OnDeath | None = None) -> RDBStorage:
    """The storage, its tables made where there are none; on_death: what to do about a dead worker's trial.

    Raises MoetuneError (STORAGE) where the database cannot be reached or used, or belongs to another program.
    """
    with reported(database):
        with _engine(database).begin() as connection:
            # Two workers that make the tables at the same time would trip over one another.
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            _refuse_foreign(connection, database)
            storage = _storage(database, on_death)
        _outlast(storage.engine, database.patience_s)
        return storage


def look_into(database: Database) -> RDBStorage | None:
    """The storage for reading; None where the database is still empty, which it then stays."""
    with reported(database), _engine(database).begin() as connection:
        connection.execute(text(f"SELECT pg_advisory_xact_lock_shared({_LOCK})"))
        return _storage(database, None) if _refuse_foreign(connection, database) else None


@contextmanager
def reported(database: Database, remedy: str = "") -> Iterator[None]:
    """Turns whatever the database refuses into a MoetuneError (STORAGE) without the password; `remedy` is added."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise _explained(database, error, remedy) from None
    except KeyError as error:
        if error.args != (_GONE,):
            raise
        raise MoetuneError(
            f"The study was dropped from {database.shown} while this search was running.",
            "Run the same command again to start it anew.",
            ExitCode.STORAGE,
        ) from None


def _engine(database: Database) -> Engine:
    try:
        return create_engine(database.url, poolclass=NullPool, connect_args=_connect_args(database))
    except ArgumentError:
        raise MoetuneError(
            "--storage is not a URL that can be understood.",
            "Use --storage postgresql://user:password@host/database.",
            ExitCode.USAGE,
        ) from None
    except ImportError:
        raise MoetuneError(
            "The driver for PostgreSQL is not installed.", "pip install 'moetune[postgres]'", ExitCode.STORAGE
        ) from None


def _connect_args(database: Database) -> dict[str, str | int]:
    asked = make_url(database.url).query
    options = asked.get("options", "")
    # Signs of life carry no time zone: every worker's must be the same.
    arguments: dict[str, str | int] = {"options": f"{options} -c timezone=utc".strip()}
    if "connect_timeout" not in asked:
        arguments["connect_timeout"] = _CONNECT_S
    return arguments


def _storage(database: Database, on_death: OnDeath | None) -> RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            return RDBStorage(
                # optuna fills in templates: braces are its own.
                database.url.replace("{", "{{").replace("}", "}}"),
                {"pool_pre_ping": True, "connect_args": _connect_args(database)},
                heartbeat_interval=database.heartbeat_s,
                grace_period=database.grace_s,
                heartbeat_stale_trial_callback=on_death,
            )
        except RuntimeError as error:
            raise MoetuneError(
                f"The tables in {database.shown} have another schema: {str(error).split('.')[0]}.",
                "Use the same version of optuna on every machine (`pip show optuna`), or another, empty database. "
                "Nothing was changed.",
                ExitCode.STORAGE,
            ) from None


def _refuse_foreign(connection: Connection, database: Database) -> bool:
    """Whether the tables are there; a database that holds others is somebody else's."""
    tables = frozenset(inspect(connection).get_table_names())
    if tables and not tables >= _OURS:
        named = ", ".join(sorted(tables)[:3])
        raise MoetuneError(
            f"The database {database.shown} holds another program's tables ({named}).",
            "Use an empty database for moetune (`createdb moetune`). Nothing was changed.",
            ExitCode.STORAGE,
        )
    return bool(tables)


def _outlast(engine: Engine, patience_s: float) -> None:
    """A database that restarts must not end a search of hours: new connections are tried until patience runs out."""

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Dialect, record: object, arguments: list[object], options: dict[str, object]) -> object:
        give_up_at, pause_s = time.monotonic() + patience_s, _FIRST_PAUSE_S
        while True:
            try:
                return dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.OperationalError:
                if time.monotonic() + pause_s > give_up_at:
                    raise
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _explained(database: Database, error: Exception, remedy: str) -> MoetuneError:
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    said = getattr(cause, "orig", None) or cause
    words = database.hide(" ".join(str(said).split()))[:300].rstrip("?.") or type(said).__name__
    if getattr(said, "sqlstate", None) in _READ_ONLY:
        what = f"The database {database.shown} does not let us write: {words}"
        advice = "Use a user who may write there (GRANT ALL ON ALL TABLES IN SCHEMA public), or a database of its own."
    else:
        what = f"The database {database.shown} cannot be used: {words}"
        advice = "Check that PostgreSQL runs there and lets us in, and user, password and database in --storage."
    return MoetuneError(f"{what}.", f"{advice}\n{remedy}".strip(), ExitCode.STORAGE)
