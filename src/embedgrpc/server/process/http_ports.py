"""The HTTP ports: that for calls, and that which serves only metrics."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedgrpc.server.calls.open_calls import OpenCalls
from embedgrpc.server.connections.keeper import Limits
from embedgrpc.server.http.dialects.all_routes import all_routes, metrics_routes
from embedgrpc.server.http.exchange import Served
from embedgrpc.server.http.listener import HttpListener, Listening
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.services.health import HealthService
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.settings.worst_case import METRICS_CONNECTIONS
from embedgrpc.server.telemetry.http_tracing import HttpTracer
from embedgrpc.server.telemetry.metrics import Figures
from embedgrpc.server.telemetry.other_names import OtherNames
from embedgrpc.server.telemetry.prometheus import MetricsPage

if TYPE_CHECKING:
    from embedgrpc.server.connections.tls import Tls


class HttpPorts:
    """Makes the listeners.

    Args:
        catalog: The models.
        settings: The settings.
        health: The health of the services.
        figures: What the server counts.
        other_names: The same by the names of other servers.
        tls: Its certificates; None for no TLS.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        health: HealthService,
        *,
        figures: Figures,
        other_names: Sequence[OtherNames],
        tls: "Tls | None",
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._served = Served(
            catalog,
            settings,
            health,
            started_at=int(time.time()),
            metrics=MetricsPage(
                figures if "embedgrpc" in settings.metrics_names else None, other_names
            ),
        )

    def calls(self, calls: OpenCalls, *, limits: Limits, tracer: HttpTracer | None) -> HttpListener:
        """Make the listener for calls."""
        return HttpListener(
            Listening("http", self._settings.http_address, "--http-address", all_routes()),
            self._served,
            calls,
            limits=limits,
            tracer=tracer,
            tls=self._tls.http_context() if self._tls else None,
        )

    def metrics(self, calls: OpenCalls) -> HttpListener:
        """Make the listener that serves only metrics.

        Args:
            calls: A registry of its own: calls for vectors must not take the places of scrapes.
        """
        return HttpListener(
            Listening(
                "metrics", self._settings.metrics_address, "--metrics-address", metrics_routes()
            ),
            self._served,
            calls,
            limits=Limits(METRICS_CONNECTIONS),
            tls=self._tls.http_context() if self._tls else None,
        )
