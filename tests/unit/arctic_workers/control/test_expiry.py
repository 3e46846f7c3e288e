"""When the certificate of a worker ends."""

from datetime import datetime, timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry

from arctic_api.world import InferenceGroup
from arctic_operator.certificates import LEAF_LIFE, Authority, server_secret
from arctic_workers.control.expiry import CertificateExpiry

NAME = "arctic_control_certificate_expiry_timestamp_seconds"


def registry_of(group: InferenceGroup, folder: Path | None) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(CertificateExpiry(group.model_copy(update={"tls_folder": str(folder) if folder else None})))
    return registry


def test_the_end_follows_the_files_and_damaged_ones_are_passed_over(
    group: InferenceGroup, tls_folder: Path, authority: Authority, now: datetime
) -> None:
    registry, end = registry_of(group, tls_folder), (now + LEAF_LIFE).replace(microsecond=0).timestamp()
    assert registry.get_sample_value(NAME) == end
    for name, content in server_secret(authority, "chat", "team", now - timedelta(days=30)).items():
        (tls_folder / name).write_bytes(content)
    earlier = end - timedelta(days=30).total_seconds()
    assert registry.get_sample_value(NAME) == earlier
    (tls_folder / "tls.crt").write_text("damaged")
    assert registry.get_sample_value(NAME) == earlier


def test_local_processes_have_none(group: InferenceGroup) -> None:
    assert registry_of(group, None).get_sample_value(NAME) is None
