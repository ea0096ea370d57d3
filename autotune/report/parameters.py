"""The study in Optuna's terms, with names and values for people: what Optuna's own plots are drawn from."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from moetune.autotune.knobs import Choice
from moetune.autotune.shelf import StoredStudy, StoredTrial
from moetune.engine.config import EngineConfig, Policy

# Below this many measured trials an importance would be an accident.
_FEWEST = 8
# PED-ANOVA looks at the best tenth of the trials; its documentation asks for five of them at least.
_BEST_SHARE, _BEST_TRIALS = 0.1, 5
_MOST_SLICES = 6
_MOST_MARKS = 8
_MOST_CROSSED = 3
_LOG_FROM = 8.0
_NAMES = {
    "engine": "engine",
    "slots_percent": "slots, % of the room",
    "interval_tokens": "rebalance interval, tokens",
    "hysteresis": "hysteresis, times",
    "promotions": "promotions a rebalance",
    "policy": "policy",
    "spread": "spread of slots",
    "reserve": "reserve, times the usual",
    "prefill": "way of prompts",
    "ahead": "tokens begun ahead",
    "ram_expert_layers": "layers with experts in RAM",
    "gpu_layers": "layers on devices",
    "device": "first device",
    "main_percent": "layers on the first device, %",
    "n_threads": "threads for tokens",
    "n_threads_batch": "threads for prompts",
    "n_ubatch": "micro-batch, tokens",
    "type_k": "type of K",
    "type_v": "type of V",
    "type_kv": "type of K and V",
    "repack": "packed weights",
    "load_mode": "loading",
    "flash_attn": "flash attention",
}
_OF_CACHE = frozenset(
    ("slots_percent", "interval_tokens", "hysteresis", "promotions", "policy", "spread", "reserve", "prefill", "ahead")
)
_OF_REBALANCING = frozenset(("interval_tokens", "hysteresis", "promotions"))


class PlotKind(StrEnum):
    """Which of Optuna's plots."""

    IMPORTANCES = "importances"
    SLICE = "slice"
    CONTOUR = "contour"


@dataclass(frozen=True)
class OptunaPlot:
    """One of Optuna's own plots. parameters: those it shows, by the names in `study`. empty: why it shows nothing."""

    key: str
    title: str
    caption: str
    kind: PlotKind
    study: optuna.Study
    parameters: tuple[str, ...]
    empty: str = ""


def optuna_plots(study: StoredStudy) -> tuple[OptunaPlot, ...]:
    """Importances, then slices of the parameters that matter most, then contours of pairs of these."""
    by_place, by_value = _in_optuna(study, by_place=True), _in_optuna(study, by_place=False)
    varied = _varied(by_value)
    few = len(by_value.trials) < _FEWEST
    ranked = varied if few else _ranked(by_place, varied)
    why_few = f"{len(by_value.trials)} measured trials are too few to tell; it takes {_FEWEST}." if few else ""
    nothing = "" if varied else "No parameter took more than one value in the measured trials."
    return (
        OptunaPlot(
            "importances",
            "Which parameters mattered",
            f"Optuna's PED-ANOVA over {len(by_value.trials)} measured trials: how much a parameter sets the best of "
            "them apart. With few trials it is a hint and no more.",
            PlotKind.IMPORTANCES,
            by_place,
            tuple(varied),
            why_few or nothing,
        ),
        *(_slice(by_value, name) for name in ranked[:_MOST_SLICES]),
        *(_contour(by_value, pair) for pair in combinations(ranked[:_MOST_CROSSED], 2)),
    )


def evaluator_for(study: optuna.Study) -> PedAnovaImportanceEvaluator:
    """PED-ANOVA over at least five best trials."""
    share = min(0.5, max(_BEST_SHARE, _BEST_TRIALS / max(1, len(study.trials))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PedAnovaImportanceEvaluator(target_quantile=share)


def few_whole_values(study: optuna.Study, name: str) -> list[int]:
    """The parameter's values in order, if they are counts and so few that each can be written at its place; else none.

    Left alone, an axis of two to four layers is marked at two and a quarter.
    """
    values = {trial.params[name] for trial in study.trials if name in trial.params}
    counts = sorted({int(value) for value in values if not isinstance(value, str) and value == int(value)})
    return counts if len(counts) == len(values) <= _MOST_MARKS else []


def _slice(study: optuna.Study, name: str) -> OptunaPlot:
    caption = "One dot a trial; darker ones came later."
    return OptunaPlot(f"slice-{_key(name)}", name, caption, PlotKind.SLICE, study, (name,))


def _contour(study: optuna.Study, pair: tuple[str, str]) -> OptunaPlot:
    together = {tuple(trial.params[name] for name in pair) for trial in study.trials if set(pair) <= set(trial.params)}
    crossed = all(len({values[i] for values in together}) > 1 for i in (0, 1))
    return OptunaPlot(
        f"contour-{_key(pair[0])}-{_key(pair[1])}",
        f"{pair[0]} × {pair[1]}",
        "Turn time between the trials (dots), interpolated.",
        PlotKind.CONTOUR,
        study,
        pair,
        "" if crossed else "These two never varied together in the measured trials.",
    )


def _key(name: str) -> str:
    known = next((key for key, shown in _NAMES.items() if shown == name), "other")
    return known.replace("_", "-")


def _varied(study: optuna.Study) -> list[str]:
    values: dict[str, set[Choice]] = {}
    for trial in study.trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return [name for name, taken in values.items() if len(taken) > 1]


def _ranked(study: optuna.Study, names: list[str]) -> list[str]:
    with warnings.catch_warnings():
        # It warns of regimes with few trials; the caption says how many there are.
        warnings.simplefilter("ignore")
        return list(get_param_importances(study, evaluator=evaluator_for(study), params=names)) if names else []


def _in_optuna(study: StoredStudy, *, by_place: bool) -> optuna.Study:
    """The measured trials in memory. by_place: ordered choices as 0, 1, 2, …, which is how they were sampled."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    view = optuna.create_study()
    spaces = dict(_spaces(study, by_place=by_place))
    for trial in study.trials:
        if trial.record is None or trial.record.turn_s is None:
            continue
        point = dict(_point(trial, trial.record.config, spaces))
        view.add_trial(
            create_trial(
                value=trial.record.turn_s,
                params={name: value for name, (value, _) in point.items()},
                distributions={name: space for name, (_, space) in point.items()},
                constraints=dict(trial.constraints),
            )
        )
    return view


@dataclass(frozen=True)
class _Dimension:
    choices: tuple[Choice, ...]
    space: BaseDistribution

    def value(self, choice: Choice) -> Choice:
        match self.space:
            case IntDistribution():
                return self.choices.index(choice)
            case FloatDistribution():
                return float(choice)
            case _:
                return _text(choice)


def _spaces(study: StoredStudy, *, by_place: bool) -> Iterator[tuple[str, _Dimension]]:
    names = dict.fromkeys(name for trial in study.trials for name in trial.params)
    for name in names:
        taken = {trial.params[name] for trial in study.trials if name in trial.params}
        ordered = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in taken)
        choices = tuple(sorted(taken)) if ordered else tuple(sorted(taken, key=str))
        yield name, _Dimension(choices, _space(choices, ordered=ordered, by_place=by_place))


def _space(choices: tuple[Choice, ...], *, ordered: bool, by_place: bool) -> BaseDistribution:
    if not ordered:
        return CategoricalDistribution([_text(choice) for choice in choices])
    if by_place:
        return IntDistribution(0, len(choices) - 1)
    low, high = float(choices[0]), float(choices[-1])
    return FloatDistribution(low, high, log=low > 0 and high / low >= _LOG_FROM)


def _point(
    trial: StoredTrial, config: EngineConfig, spaces: dict[str, _Dimension]
) -> Iterator[tuple[str, tuple[Choice, BaseDistribution]]]:
    for name, choice in trial.params.items():
        if _matters(name, config):
            yield _NAMES.get(name, _text(name)), (spaces[name].value(choice), spaces[name].space)


def _matters(name: str, config: EngineConfig) -> bool:
    """Whether the parameter does anything in this configuration."""
    cache = config.cache
    if name in _OF_CACHE and (cache is None or not cache.on):
        return False
    return not (name in _OF_REBALANCING and cache is not None and cache.policy is Policy.STATIC)


def _text(choice: Choice) -> str:
    """Names of devices come from elsewhere, and `<` would begin markup in plotly."""
    if isinstance(choice, bool):
        return "yes" if choice else "no"
    return str(choice).replace("<", "‹")[:80]
