"""What trials taught the cost model: by how much it was wrong, kind of configuration by kind."""

from dataclasses import dataclass
from math import exp
from statistics import median

from moetune.engine.config import EngineConfig

# A factor beyond these says that the trial was disturbed or the model misses something: it is not carried further.
_MOST_LOG = 1.4


@dataclass(frozen=True)
class Family:
    """Configurations that are wrong alike: the same code computes them, in the same place."""

    cached: bool
    plugin: bool
    on_device: bool

    @classmethod
    def of(cls, config: EngineConfig) -> "Family":
        return cls(config.has_slots, config.cache is not None, config.gpu_layers > 0)


@dataclass(frozen=True)
class Correction:
    """Factors on predicted seconds. seen: of each trial its family and the logarithm of measured over predicted.

    A factor is the median of its family's, drawn towards the median of all as if that were one more trial: one trial
    tells as much about its family as about the machine, and one disturbed trial among three tells nothing.
    """

    seen: tuple[tuple[Family, float], ...] = ()

    def add(self, config: EngineConfig, log_ratio: float) -> "Correction":
        """With one more trial."""
        return Correction((*self.seen, (Family.of(config), min(max(log_ratio, -_MOST_LOG), _MOST_LOG))))

    def factor(self, config: EngineConfig) -> float:
        """What predicted seconds of such a configuration are to be multiplied with."""
        if not self.seen:
            return 1.0
        general = median(ratio for _, ratio in self.seen)
        family = Family.of(config)
        own = [ratio for of, ratio in self.seen if of == family]
        if not own:
            return exp(general)
        return exp((len(own) * median(own) + general) / (len(own) + 1))
