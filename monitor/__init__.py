"""A running engine, watched: where samples come from, what happened between them, and how it looks in a terminal."""
