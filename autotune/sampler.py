"""Who proposes configurations once the seeds are measured."""

from enum import StrEnum
from importlib.util import find_spec

from optuna.samplers import BaseSampler, GPSampler, TPESampler

from moetune.errors import ExitCode, MoetuneError

_RANDOM_TRIALS = 6


class Sampler(StrEnum):
    """Optuna's tree-structured Parzen estimator, or its Gaussian process, which needs PyTorch."""

    TPE = "tpe"
    GP = "gp"


def require(sampler: Sampler) -> None:
    """MoetuneError (USAGE) where what it needs is not installed."""
    if sampler is Sampler.GP and find_spec("torch") is None:
        raise MoetuneError(
            "The Gaussian process needs PyTorch, which is not installed.",
            "Install it (pip install 'moetune[gp]'), or use --sampler tpe.",
            ExitCode.USAGE,
        )


def sampler_of(sampler: Sampler, seed: int) -> BaseSampler:
    """Several are asked for at once, and other workers have theirs: TPE takes what is running for bad, so that they
    do not crowd together.
    """
    if sampler is Sampler.GP:
        return GPSampler(seed=seed, n_startup_trials=_RANDOM_TRIALS)
    return TPESampler(seed=seed, n_startup_trials=_RANDOM_TRIALS, constant_liar=True)
