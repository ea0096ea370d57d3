"""What Prometheus reads: the server's own figures, and the engine's as it last told them."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moetune.engine.serving import ServingState
from moetune.server.backend import Backend

_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """A registry of its own, so that several servers in one process do not add up."""

    def __init__(self, backend: Backend) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "moetune_requests", "Requests by path and HTTP status.", ["path", "status"], registry=self._registry
        )
        self.first_text_s = Histogram(
            "moetune_time_to_first_text_seconds",
            "From the request to the first text of its reply, waiting included.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.request_s = Histogram(
            "moetune_request_seconds", "From the request to the end.", buckets=_SECONDS, registry=self._registry
        )
        self._registry.register(_Engine(backend))

    def text(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self._registry)


class CountRequests:
    """Middleware: every response's path and status. Paths that are not the server's own count as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._requests = metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in _PATHS else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)


class _Engine(Collector):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterator[Metric]:
        backend = self._backend
        yield GaugeMetricFamily("moetune_engine_up", "1 while the engine is there.", int(backend.up))
        yield CounterMetricFamily("moetune_engine_restarts", "Times the engine was started again.", backend.restarts)
        yield CounterMetricFamily(
            "moetune_requests_cancelled", "Requests whose client left before their end.", backend.cancelled
        )
        if backend.state is not None:
            yield from _state(backend.state)


def _state(state: ServingState) -> Iterator[Metric]:
    """Sums begin at 0 when the engine is started again, as counters may."""
    yield GaugeMetricFamily("moetune_sequences_running", "Requests that are being computed.", state.n_running)
    yield GaugeMetricFamily("moetune_requests_waiting", "Requests that wait for a free sequence.", state.n_waiting)
    yield GaugeMetricFamily("moetune_kv_cells", "Positions that the KV cache has room for.", state.kv_cells)
    yield GaugeMetricFamily("moetune_kv_cells_used", "KV cells of running requests.", state.kv_cells_used)
    yield GaugeMetricFamily(
        "moetune_kv_cells_kept", "KV cells of ended requests, for prompts that begin alike.", state.kv_cells_kept
    )
    yield CounterMetricFamily("moetune_prompt_tokens", "Prompt tokens computed.", state.prompt_tokens)
    yield CounterMetricFamily("moetune_generated_tokens", "Tokens generated.", state.reply_tokens)
    yield GaugeMetricFamily("moetune_cache_slots", "Expert slots held in the fast tier, all layers.", state.slots)
    counters = state.counters
    if counters is None:
        return
    yield CounterMetricFamily(
        "moetune_cache_hits", "Routed (token, expert) pairs served by the fast tier.", counters.hits
    )
    yield CounterMetricFamily(
        "moetune_cache_misses", "Routed (token, expert) pairs computed in the slow tier.", counters.misses
    )
    yield CounterMetricFamily("moetune_cache_promotions", "Experts copied into slots.", counters.promotions)
    link = CounterMetricFamily("moetune_cache_link_bytes", "Bytes of experts over the link.", labels=["cause"])
    link.add_metric(["promotion"], counters.bytes_moved)
    link.add_metric(["prompt"], counters.streamed_bytes)
    yield link
    yield GaugeMetricFamily(
        "moetune_cache_layers_off", "Layers in which the cache does not pay and is off.", counters.layers_off
    )
