import hashlib
import json
import tarfile
from pathlib import Path

from arctic_cluster import image

TARGETS = [
    "http://mirror.test/debian/ bookworm main Debian",
    "http://mirror.test/debian/ bookworm main Debian",
    "http://mirror.test/security/ bookworm-security main Debian",
    "http://vendor.test/node nodistro main nodesource",
    "http://vendor.test/no-origin stable main ",
]


def test_only_the_distributions_own_sources_are_taken_and_each_once() -> None:
    assert image.select_sources(TARGETS, "debian") == (
        "deb http://mirror.test/debian/ bookworm main\ndeb http://mirror.test/security/ bookworm-security main\n"
    )


def test_an_archive_has_what_its_manifest_and_digests_say(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    (tmp_path / "hello").write_text("hello")
    with tarfile.open(layer, "w") as tar:
        tar.add(tmp_path / "hello", "hello")
    image.write_archive(layer, tmp_path / "image.tar", ["an/image:1", "an/image:2"])
    with tarfile.open(tmp_path / "image.tar") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    (manifest,) = json.loads(content["manifest.json"])
    assert manifest["RepoTags"] == ["an/image:1", "an/image:2"]
    config = json.loads(content[manifest["Config"]])
    (stored,) = (content[name] for name in manifest["Layers"])
    assert stored == layer.read_bytes()
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(stored).hexdigest()}"]
    assert config["config"]["User"] == "65532:65532"
