"""Counts and times of requests, for Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxygml.serving.service import Service


class Metrics:
    """What Prometheus reads at /metrics."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "status")
        self.requests = Counter("proxygml_requests", "requests answered", labels, registry=self.registry)
        self.seconds = Histogram("proxygml_request_seconds", "time to answer", ("route",), registry=self.registry)
        Gauge("proxygml_items", "items in the gallery", registry=self.registry).set_function(
            lambda: service.current.items
        )
        Gauge("proxygml_requests_under_way", "requests under way", registry=self.registry).set_function(
            lambda: service.active
        )


class Measured:
    """Counts requests and the time to their answers, refusals and failures too."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, end, status = time.perf_counter(), 0.0, 500

        async def noting(message: Message) -> None:
            nonlocal end, status
            if message["type"] == "http.response.start":
                end, status = time.perf_counter(), message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe((end or time.perf_counter()) - start)
