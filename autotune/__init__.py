"""The search: space, cost model, baselines, noise, trials, quality gate, race, verdict.

Depends on the engine only through its `Runner`.
"""
