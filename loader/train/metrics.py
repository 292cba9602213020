"""Statistics of the loaders of this process as Prometheus metrics. Owns names and the little server; the numbers are `LoaderStats`."""

from __future__ import annotations

import hmac
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from loader.extras import require

if TYPE_CHECKING:
    from loader.train.loader import DataLoader

_loaders: weakref.WeakKeyDictionary[DataLoader, int] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


def count_in(loader: DataLoader) -> int:
    """Take a loader into the metrics, for as long as it lives; returns its number in this process."""
    _loaders[loader] = next(_numbers)
    return _loaders[loader]


class LoaderCollector:
    """A Prometheus collector over the live loaders of this process: `prometheus_client.REGISTRY.register(LoaderCollector())`.

    Every metric has the labels `table`, `rank` and `loader`, its number in this process.
    Blocked seconds are the trainer's, by the stage that it waited for; pipeline seconds are the loader's own.
    """

    def collect(self) -> Iterator[Any]:
        """Metric families, as prometheus_client asks for them."""
        core = require("prometheus_client.core", "metrics")
        labels = ["table", "rank", "loader"]
        counters = {
            name: core.CounterMetricFamily(f"headrace_loader_{name}", text, labels=[*labels, *more])
            for name, text, more in (
                ("batches", "Batches handed over.", []),
                ("samples", "Samples in them.", []),
                ("seconds", "The trainer's time from its first request to the last batch.", []),
                ("blocked_seconds", "The part of it in which the trainer waited, by the stage it waited for.", ["stage"]),
                ("pipeline_seconds", "The loader thread's time, by stage.", ["stage"]),
                ("blocks", "Blocks fetched.", []),
                ("encoded_bytes", "Bytes of their chunks, as stored.", []),
                ("storage_reads", "Calls of the store by this process.", []),
                ("storage_retries", "Those that the store lost or refused and that were made again.", []),
                ("cache_hits", "Footers and folded patches that were still there.", []),
                ("cache_misses", "Those that were read.", []),
                ("bad_records", "Values that were left out by policy.", ["column"]),
            )
        }
        gauges = [
            core.GaugeMetricFamily(f"headrace_loader_{name}", text, labels=labels)
            for name, text in (
                ("peak_window_bytes", "Largest decoded size of all windows held at once."),
                ("peak_queued_bytes", "Largest size of all batches that waited for the trainer at once."),
                ("batches_ahead", "Batches that may wait for the trainer now."),
                ("blocks_ahead", "Blocks that may be fetched ahead now."),
            )
        ]
        for loader, number in list(_loaders.items()):
            stats, values = loader.stats(), [loader.plan.table, str(loader.options.rank), str(number)]
            plain = (("batches", stats.batches), ("samples", stats.rows), ("seconds", stats.seconds), ("blocks", stats.blocks))
            storage = stats.storage
            calls = (("storage_reads", storage.reads), ("storage_retries", storage.retries))
            caches = (("cache_hits", storage.cache_hits), ("cache_misses", storage.cache_misses))
            for name, value in (*plain, ("encoded_bytes", stats.encoded_bytes), *calls, *caches):
                counters[name].add_metric(values, value)
            parts = {"blocked_seconds": stats.blocked_seconds, "pipeline_seconds": stats.pipeline_seconds, "bad_records": stats.bad_records}
            for name, found in parts.items():
                for key, value in found.items():
                    counters[name].add_metric([*values, key], value)
            for gauge, size in zip(gauges, (stats.peak_window_bytes, stats.peak_queued_bytes, stats.batches_ahead, stats.blocks_ahead), strict=True):
                gauge.add_metric(values, size)
        yield from (*counters.values(), *gauges)


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""


def serve_metrics(port: int, *, host: str = "127.0.0.1", token: str | None = None) -> Callable[[], None]:
    """Serve `/metrics` of this process's loaders from a thread.

    Args:
        port: To listen on; 0 takes a free one.
        host: Loopback by default. Another needs a token.
        token: What a scraper sends as `Authorization: Bearer <token>`.

    Returns:
        What stops the server; its attribute `port` is the port.

    Raises:
        ValueError: Another host than loopback without a token.
    """
    if host not in ("127.0.0.1", "::1", "localhost") and not token:
        raise ValueError(f"host is {host!r}: metrics are served to other machines only with token=…")
    client = require("prometheus_client", "metrics")
    registry = client.CollectorRegistry()
    registry.register(LoaderCollector())
    metrics = client.make_wsgi_app(registry)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if token and not hmac.compare_digest(environ.get("HTTP_AUTHORIZATION", "").encode(), f"Bearer {token}".encode()):
            start_response("401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")])
            return [b"a token is needed\n"]
        return metrics(environ, start_response)

    server = make_server(host, port, app, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, name="headrace-metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    stop.port = server.server_port  # type: ignore[attr-defined]
    return stop
