"""Lets KV types pass that change the model's predictions little enough, measured on the user's own model and text."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from moetune.autotune.quality import QualityFigures, QualityLevel, QualityReport, judge_quality
from moetune.autotune.quality_store import QualityKey, QualityStore
from moetune.autotune.quality_text import QualityText, quality_text
from moetune.autotune.record import TrialRecord
from moetune.autotune.request import SearchRequest
from moetune.engine.config import CacheKnobs, EngineConfig, KvType
from moetune.engine.divergence import Divergence, summarize
from moetune.engine.measurement import Failed, FailureReason, Scorer
from moetune.engine.model import Model
from moetune.engine.passage import Passage
from moetune.errors import MoetuneError

# No type is better than these: flash attention turns f32 into f16 before it computes.
_UNQUANTISED = (KvType.F16, KvType.F32)
_NO_ROOM = (FailureReason.OUT_OF_MEMORY, FailureReason.CONTEXT_FAILED)
# For one passage: only frees the terminal from an engine that hangs; a model read from disk may need many minutes.
_PASSAGE_LIMIT_S = 3600.0
_Pair = tuple[KvType, KvType]


@dataclass
class QualityGate:
    """Asks once for each pair of KV types, and only when a configuration is about to matter.

    text: None where `level` is `any` or no type can compete that would have to be measured. note: told what is
    measured, and what came of it.
    """

    level: QualityLevel
    scorer: Scorer
    text: QualityText | None
    store: QualityStore
    model_fingerprint: str
    engine_version: str
    note: Callable[[str], None]
    _reports: dict[_Pair, QualityReport] = field(default_factory=dict)

    def admits(self, config: EngineConfig) -> QualityReport:
        """Whether the configuration's KV types are inside the level; measures unless the figures are known.

        Types that could not be measured do not pass.
        """
        pair = (config.type_k, config.type_v)
        if pair not in self._reports:
            self._reports[pair] = self._report(config)
        return self._reports[pair]

    def known(self, config: EngineConfig | None) -> QualityReport | None:
        """The report on its types if they were asked for; measures nothing."""
        return self._reports.get((config.type_k, config.type_v)) if config is not None else None

    def admissible(self, records: list[TrialRecord]) -> list[TrialRecord]:
        """Every trial but those whose types were asked for and did not pass; measures nothing."""
        reports = [(record, self.known(record.config)) for record in records]
        return [record for record, report in reports if report is None or report.passed]

    def _report(self, config: EngineConfig) -> QualityReport:
        kinds = (config.type_k, config.type_v)
        if all(kind in _UNQUANTISED for kind in kinds):
            return QualityReport(*kinds, passed=True, reason="not quantised")
        if self.text is None:
            return QualityReport(*kinds, passed=True, reason="any quality will do")
        found = self._figures(config, self.text)
        if isinstance(found, Failed):
            reason = f"its quality could not be measured: {found.reason}: {' '.join(found.detail.split())}"
            report = QualityReport(*kinds, passed=False, reason=reason)
        else:
            report = judge_quality(*kinds, found[0], found[1], self.level)
        self.note(f"quality {'passed' if report.passed else 'not passed'}: {report.sentence}")
        return report

    def _figures(self, config: EngineConfig, text: QualityText) -> tuple[QualityFigures, QualityFigures] | Failed:
        """Of the configuration's types, and the noise floor; measured together where both are unknown."""
        key = QualityKey(
            self.model_fingerprint, self.engine_version, config.device, config.type_k, config.type_v, text.digest
        )
        floor_key = replace(key, type_k=KvType.F16, type_v=KvType.F16)
        figures, floor = self.store.find(key), self.store.find(floor_key)
        if figures is not None and floor is not None:
            return figures, floor
        self.note(f"Measuring the quality of K {config.type_k}, V {config.type_v} against f16.")
        measured = self._measure(_plain(config), text, with_floor=floor is None)
        if isinstance(measured, Failed) and measured.reason in _NO_ROOM and config.gpu_layers:
            # Slots or quantised types are what made it fit: with f16 the KV cache and the layers go to RAM.
            in_ram = replace(_plain(config), gpu_layers=0, cache=None)
            measured = self._measure(in_ram, text, with_floor=floor is None)
        if isinstance(measured, Failed):
            return measured
        figures, floor = measured[0], floor or measured[1]
        try:
            self.store.keep(key, figures)
            self.store.keep(floor_key, floor)
        except MoetuneError as error:
            self.note(f"The figures will have to be measured again: {error.cause}")
        return figures, floor

    def _measure(
        self, config: EngineConfig, text: QualityText, *, with_floor: bool
    ) -> tuple[QualityFigures, ...] | Failed:
        """Figures of the configuration's types and, if asked for, the noise floor: f16 with another micro-batch."""
        base = replace(config, type_k=KvType.F16, type_v=KvType.F16)
        other_batch = replace(base, n_ubatch=max(1, min(base.n_ubatch, text.n_chunk) // 2))
        variants = (config, other_batch) if with_floor else (config,)
        in_chunks = self._score(base, variants, text.in_chunks)
        if isinstance(in_chunks, Failed):
            return in_chunks
        if text.at_depth is None:
            return tuple(QualityFigures(found, None) for found in in_chunks)
        at_depth = self._score(base, variants, text.at_depth)
        return at_depth if isinstance(at_depth, Failed) else tuple(map(QualityFigures, in_chunks, at_depth))

    def _score(
        self, base: EngineConfig, variants: tuple[EngineConfig, ...], passage: Passage
    ) -> tuple[Divergence, ...] | Failed:
        others = tuple(replace(variant, n_ctx=passage.n_chunk) for variant in variants)
        base = replace(base, n_ctx=passage.n_chunk)
        scores = self.scorer.score(base, others, passage, time_limit_s=_PASSAGE_LIMIT_S)
        return scores if isinstance(scores, Failed) else tuple(map(summarize, scores))


def open_gate(request: SearchRequest, model: Model, scorer: Scorer, note: Callable[[str], None]) -> QualityGate:
    """The gate of one search. Raises MoetuneError (USAGE) now for a text that is too short for it."""
    text = None
    asked = request.quality_text is not None or not set(request.kv_types) <= set(_UNQUANTISED)
    if asked and request.quality is not QualityLevel.ANY:
        text = quality_text(request.quality_text, request.workload, request.n_ctx, model.n_vocab, scorer)
    store = QualityStore(request.state_dir / "quality")
    return QualityGate(request.quality, scorer, text, store, model.fingerprint, request.engine_version, note)


def _plain(config: EngineConfig) -> EngineConfig:
    """The same placement without slots: what they hold changes no prediction, only where it is computed."""
    return config if config.cache is None else replace(config, cache=CacheKnobs(slots=0))
