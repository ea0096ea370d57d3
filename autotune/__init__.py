"""The search: space, memory, baselines, trials, duel, verdict. Depends on the engine only through its `Runner`."""
