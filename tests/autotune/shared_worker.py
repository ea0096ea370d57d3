"""One machine's search on a shared study, as a process that a test may kill. Writes a line for every measurement.

shared_worker.py URL FOLDER SECONDS            a fake engine that takes so long for each measurement
shared_worker.py URL FOLDER MODEL              the real engine on an emulated accelerator
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from fake_runner import FakeRunner, Landscape
from world import WORKLOAD, gpu, machine_with, memory_of, moe_model, request_for, still

from moetune.autotune.database import Database, parse_database
from moetune.autotune.events import Silent
from moetune.autotune.race import Rules
from moetune.autotune.record import TrialRecord
from moetune.autotune.search import search
from moetune.engine.emulator import parse_emulated
from moetune.engine.model import read_model
from moetune.engine.runner import EngineRunner, register_emulated
from moetune.hardware.probe import read_machine

MACHINE, MODEL = machine_with(gpu(900)), moe_model()
LANDSCAPE = Landscape(noise=0.02)


class Log(Silent):
    """`measured N` when a trial is done, `note TEXT` for what a person would read."""

    def note(self, text: str) -> None:
        print("note", text, flush=True)

    def trial_finished(self, record: TrialRecord, best: TrialRecord | None, baseline: TrialRecord | None) -> None:
        print("measured", record.number, flush=True)


def quick(url: str) -> Database:
    """Signs of life every second, dead after three, and no patience with a database that is gone."""
    return replace(parse_database(url), heartbeat_s=1, grace_s=3, patience_s=0.5)


def search_by_formula(url: str, folder: Path, seconds: float) -> None:
    memory = memory_of(MACHINE, MODEL)
    runner = FakeRunner(LANDSCAPE, memory, seed=os.getpid(), before=lambda calls: time.sleep(seconds))
    request = request_for(folder, database=quick(url), n_trials=10, rules=Rules(most_rounds=8), seed=1)
    print(search(request, runner, MACHINE, MODEL, Log(), still).verdict.kind, flush=True)


def search_for_real(url: str, folder: Path, path: Path) -> None:
    emulated, model = parse_emulated("desktop,vram_mib=8"), read_model(path)
    register_emulated(emulated)
    workload = replace(WORKLOAD, depth_tokens=16, prompt_tokens=40, reply_tokens=24)
    request = request_for(
        folder,
        database=quick(url),
        workload=workload,
        n_ctx=256,
        n_trials=8,
        rules=Rules(most_rounds=8),
        passes=1,
        device="EMU0",
    )
    with EngineRunner(model.path, emulated) as runner:
        print(search(request, runner, read_machine(path), model, Log(), still).verdict.kind, flush=True)


if __name__ == "__main__":
    url, folder, what = sys.argv[1:]
    if Path(what).is_file():
        search_for_real(url, Path(folder), Path(what))
    else:
        search_by_formula(url, Path(folder), float(what))
