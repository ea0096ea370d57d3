"""The native engine: configuration, measurement, and the process that runs them. Knows nothing of the search."""
