"""The OpenAI-compatible HTTP server: requests in, an engine that serves several at once behind it."""
