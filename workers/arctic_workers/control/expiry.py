"""When a worker's certificate ends, as a metric: an alert tells when the operator, or a kubelet, renews none."""

import logging
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from arctic_api.world import PodWorld
from arctic_workers.control.tls import TLSFolderError, fingerprint, read_folder

log = logging.getLogger(__name__)


class CertificateExpiry(Collector):
    """Shows the end of the certificate that a new connection would get; nothing for local processes, which have none.

    Files that would not serve are passed over, as they are by `RotatingCredentials`: the ones before them count.
    """

    def __init__(self, world: PodWorld) -> None:
        self._folder = Path(world.tls_folder) if world.tls_folder is not None else None
        self._server_name = f"{world.name}.{world.namespace}"
        self._seen: list[tuple[int, int]] = []
        self._expires: float | None = None

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        if self._folder is not None:
            self._look(self._folder)
        if self._expires is not None:
            yield GaugeMetricFamily(
                "arctic_control_certificate_expiry_timestamp_seconds",
                "When the certificate ends by which the operator knows this worker.",
                self._expires,
            )

    def _look(self, folder: Path) -> None:
        try:
            now = fingerprint(folder)
            if now != self._seen:
                self._expires, self._seen = read_folder(folder, self._server_name).expires, now
        except (TLSFolderError, OSError) as error:
            log.debug("No certificate to tell the end of: %s", error)
