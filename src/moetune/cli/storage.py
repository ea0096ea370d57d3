"""Where studies are kept: on this machine, or in the database that `--storage` names."""

from moetune.autotune.database import Database, parse_database
from moetune.autotune.shelf import Studies, studies_of
from moetune.cli.folders import studies_folder


def database_of(storage: str | None) -> Database | None:
    """Raises MoetuneError (USAGE) for what is no URL of a database."""
    return None if storage is None else parse_database(storage)


def kept_studies(storage: str | None) -> Studies:
    """What can be read and dropped there."""
    return studies_of(studies_folder(), database_of(storage))
