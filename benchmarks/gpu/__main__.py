"""The measuring half of benchmarks/gpu.sh, which builds the programs that this runs."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from arms import measure_budget, save
from machine import physical_cores
from report import write_report
from runs import Bench, Effort, Failed, say


def main() -> int:
    """Returns the exit status."""
    args = _parser().parse_args()
    try:
        if args.command == "report":
            say(f"written: {write_report(args.work, args.results, args.sources)}")
            return 0
        effort = Effort(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Effort)})
        bench = Bench(args.work, args.device, args.threads or physical_cores(), effort, tuple(args.load))
        if args.command == "routing":
            say(json.dumps(bench.routing(), indent=1))
            return 0
        for budget in args.budget:
            save(bench, measure_budget(bench, int(budget * 2**30), args.rounds))
    except (Failed, OSError) as error:
        print(f"gpu.sh: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("measure", "routing"):
        command = commands.add_parser(name)
        command.add_argument("--work", type=Path, required=True)
        command.add_argument("--device", default="CUDA0")
        command.add_argument("--load", type=Path, action="append", default=[], help="a ggml backend to load first")
        command.add_argument("--threads", type=int, default=0)
        for field in dataclasses.fields(Effort):
            command.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
        if name == "measure":
            command.add_argument(
                "--budget", type=gibibytes, action="append", required=True, help="GiB of the fast tier"
            )
            command.add_argument("--rounds", type=int, default=3)
    report = commands.add_parser("report")
    report.add_argument("--work", type=Path, required=True)
    report.add_argument("--results", type=Path, required=True)
    report.add_argument("--sources", default="")
    return parser


def gibibytes(text: str) -> float:
    """A size in GiB, for argparse."""
    value = float(text)
    if not 0 < value < 4096:
        raise argparse.ArgumentTypeError("must be a number of GiB above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
