"""A PostgreSQL of the test's own: a fresh cluster on a free port of this machine, gone when the test is."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

USER = "tuner"


@dataclass
class Server:
    """A running cluster. password: of `USER`, its superuser."""

    programs: Path
    folder: Path
    port: int
    password: str

    def url(self, database: str, user: str = USER, password: str | None = None) -> str:
        return f"postgresql://{user}:{self.password if password is None else password}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        done = self._run(
            "psql", "--no-psqlrc", "-qtA", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", statement
        )
        return done.stdout.strip()

    def new(self, database: str) -> str:
        """An empty database; its URL."""
        self.sql(f"CREATE DATABASE {database}")
        return self.url(database)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", self._data, "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def make(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        self._run("initdb", "-D", self._data, "-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync")

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        # PostgreSQL refuses to run as root.
        who = _somebody() if os.geteuid() == 0 else None
        return subprocess.run(
            [self.programs / program, *arguments],
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            # A server that inherits a pipe for its errors would keep it open for ever.
            stderr=subprocess.DEVNULL if program == "pg_ctl" else None,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            user=who.pw_uid if who else None,
            group=who.pw_gid if who else None,
            extra_groups=[] if who else None,
        )


def programs() -> Path | None:
    """The folder of initdb and the server; Debian keeps it off the PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[-3]))
    return versions[-1].parent if versions else None


@contextmanager
def running(folder_of_programs: Path) -> Iterator[Server]:
    """Not below pytest's own folder, which only its user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="moetune-pg-"))
    if os.geteuid() == 0:
        os.chown(folder, _somebody().pw_uid, _somebody().pw_gid)
    server = Server(folder_of_programs, folder, _free_port(), secrets.token_hex(8))
    try:
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _somebody() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("there is no user but root to run PostgreSQL")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
