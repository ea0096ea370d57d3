"""The entry point, and the one place where a failure becomes a message and an exit code."""

import io
import os
import sys
from collections.abc import Sequence

from moetune.errors import ExitCode, MoetuneError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code, as listed in `ExitCode`."""
    # Descriptors closed by the caller (`moetune probe >&-`) are no reason to fail.
    sys.stdout = sys.stdout or io.TextIOWrapper(open(os.devnull, "wb"))  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or io.TextIOWrapper(open(os.devnull, "wb"))  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without UTF-8 shows a question mark instead of ending the run.
            stream.reconfigure(errors="replace")
    try:
        # Imported here so that Ctrl-C during a second of imports is no traceback.
        import typer

        from moetune.cli.app import app

        code = app(args=arguments, prog_name="moetune", standalone_mode=False)
        sys.stdout.flush()
    except MoetuneError as error:
        return _failed(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return _reader_is_gone()
    except SystemExit as stop:
        # typer turns a closed pipe into exit(1), which would read as a bug.
        if isinstance(stop.__context__, BrokenPipeError):
            return _reader_is_gone()
        raise
    except Exception as error:
        # What typer raises for a wrong flag or argument; its public subclass is the stable way to name it.
        if isinstance(error, typer.BadParameter.__mro__[1]):
            return _failed(_from_typer(error))
        raise
    return code if isinstance(code, int) else ExitCode.OK


def _failed(error: MoetuneError) -> ExitCode:
    from moetune.cli.output import report

    report(error)
    return error.code


def _from_typer(error: Exception) -> MoetuneError:
    # What a type of ours says is wrong with a value comes with the name of Python's exception.
    message = getattr(error, "format_message", error.__str__)().replace(": Value error, ", ": ")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "moetune"
    remedy = f"See `{command} --help`."
    parameter = getattr(error, "param", None)
    source = context.get_parameter_source(parameter.name) if context is not None and parameter is not None else None
    if source is not None and source.name == "DEFAULT_MAP":
        from moetune.cli.config_file import config_path

        remedy = f"It is the value in {config_path()}. {remedy}"
    return MoetuneError(message, remedy, ExitCode.USAGE)


def _reader_is_gone() -> ExitCode:
    """Whoever read our output has enough (`moetune run ... | head`); nothing is left to say, also not at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
