"""Parts of moetune that need more packages than it installs by itself."""

from importlib.util import find_spec

from moetune.errors import ExitCode, MoetuneError


def require(what: str, extra: str, *packages: str) -> None:
    """Raise MoetuneError (USAGE) now, not after a long wait, where one of the packages of an extra is missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MoetuneError(
            f"{what} needs {' and '.join(missing)}, which is not installed.",
            f'Install it with: pip install "moetune[{extra}]".',
            ExitCode.USAGE,
        )
