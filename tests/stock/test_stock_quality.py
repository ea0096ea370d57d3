"""Quality figures of every KV type, against stock llama-perplexity on the same model and text."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from gguf import GGUFReader
from stock_programs import LOG_TRIES, environment

from moetune.demo import demo_model_path
from moetune.engine.config import EngineConfig, KvType
from moetune.engine.divergence import Divergence, summarize
from moetune.engine.measurement import Failed
from moetune.engine.passage import Passage
from moetune.engine.runner import EngineRunner
from moetune.profiles.workload import PRESETS, load_workload

pytestmark = pytest.mark.slow

N_CHUNK = 512
BASE = EngineConfig(n_ctx=N_CHUNK, n_threads=1)
# The program prints six decimals of a KLD and five of a share. Its file holds the base's log-probabilities, which reach
# 16 below the likeliest token's, in 65,536 steps: half a step is the most a token's KLD can be off by.
LAST_DIGIT, BASE_STEP = 5e-7, 16 / 65535


@dataclass(frozen=True)
class Case:
    """A model, its text, the file of stock llama-perplexity with its f16 predictions, and moetune's own figures."""

    model: Path
    text: Path
    programs: Path
    kinds: tuple[KvType, ...]
    measured: dict[KvType, Divergence] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        return self.text.with_suffix(".kld")

    def run(self, *flags: str) -> str:
        """What the program says; a chunk a batch, so that nothing but the KV types differs from moetune's batches."""
        command = [str(self.programs / "llama-perplexity"), "-m", str(self.model), "-c", str(N_CHUNK)]
        batch = ["-b", str(N_CHUNK), "-t", "1", "--kl-divergence-base", str(self.base)]
        done = subprocess.run(
            [*command, *batch, *flags], capture_output=True, text=True, env=environment({}), timeout=600
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    def stock(self, kind: KvType) -> str:
        """Its statistics; the program sometimes loses its last lines."""
        for _ in range(LOG_TRIES):
            output = self.run("--kl-divergence", "-ctk", kind, "-ctv", kind)
            if "Same top p:" in output:
                return output
        raise AssertionError(output[-2000:])

    def measure(self) -> None:
        """The same by moetune's own engine, all types on one loaded model."""
        with EngineRunner(self.model) as runner:
            tokens = runner.tokenize(self.text.read_text())
            others = tuple(replace(BASE, type_k=kind, type_v=kind) for kind in self.kinds)
            passage = Passage(tokens, N_CHUNK, N_CHUNK - 1 - N_CHUNK // 2)
            scores = runner.score(BASE, others, passage, time_limit_s=1800)
        assert not isinstance(scores, Failed), scores
        self.measured.update(zip(self.kinds, map(summarize, scores), strict=True))


@pytest.fixture(scope="module", params=["demo", "with BOS"])
def case(request: pytest.FixtureRequest, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """The demo model, and the same made to begin every text with BOS."""
    folder = tmp_path_factory.mktemp("quality")
    model, kinds = demo_model_path(), tuple(KvType)
    if request.param != "demo":
        model = Path(shutil.copy(model, folder / "bos.gguf"))
        GGUFReader(model, "r+").fields["tokenizer.ggml.add_bos_token"].parts[-1][0] = True
        kinds = (KvType.Q8_0,)
    text = folder / "text.txt"
    text.write_text("\n".join(text for name in PRESETS for text in load_workload(name).texts))
    made = Case(model, text, programs, kinds)
    made.run("-f", str(text))
    made.measure()
    yield made
    made.base.unlink()


def printed(output: str, pattern: str) -> tuple[float, float]:
    """A figure and its error."""
    found = re.search(pattern, output)
    assert found, output[-2000:]
    return float(found[1]), float(found[2] or 0)


def test_every_kv_type_has_the_divergence_that_llama_perplexity_prints(case: Case) -> None:
    """Mean KLD and equal top tokens agree within the error printed beside them; so do tail and perplexities."""
    for kind, found in case.measured.items():
        output = case.stock(kind)
        mean, mean_error = printed(output, r"Mean +KLD: +(\S+) ± +(\S+)")
        top1, top1_error = printed(output, r"Same top p: +(\S+) ± +(\S+)")
        print(f"{case.model.stem} {kind}: {found} | stock {mean} ± {mean_error}, {top1} ± {top1_error}")
        assert abs(found.mean - mean) <= mean_error + LAST_DIGIT, kind
        assert abs(found.mean_error - mean_error) <= 0.02 * mean_error + LAST_DIGIT, kind
        # Two tokens that are equally likely but for the steps of the file may change places in it.
        assert abs(100 * found.top1 - top1) <= top1_error + 100 * 2 / found.n_tokens, kind
        assert abs(found.p999 - printed(output, r"99\.9% +KLD: +(\S+)()")[0]) <= 0.01 * found.p999 + BASE_STEP, kind
        assert abs(found.median - printed(output, r"Median +KLD: +(\S+)()")[0]) <= BASE_STEP, kind
        assert found.ppl == pytest.approx(printed(output, r"Mean PPL\(Q\) *: +(\S+)()")[0], rel=1e-5), kind
        # In the file no token is less likely than e⁻¹⁶ of the likeliest.
        assert found.base_ppl == pytest.approx(printed(output, r"Mean PPL\(base\) *: +(\S+)()")[0], rel=1e-3), kind


def test_types_are_told_apart(case: Case) -> None:
    """The comparison above could not pass with figures of another type."""
    mean = {kind: found.mean for kind, found in case.measured.items()}
    assert all(found > 0 for kind, found in mean.items() if kind not in (KvType.F16, KvType.F32))
    assert len(set(mean.values())) == len(mean) - (KvType.F16 in mean)
