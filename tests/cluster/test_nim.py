"""A NIM on the real local cluster: our sidecar is real, and a stand-in that speaks NIM's HTTP is NVIDIA's container."""

import concurrent.futures
import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nim
import pytest
from objects import EXAMPLES, PATIENCE, Objects, condition

from arctic_api.inference import KIND
from arctic_cli.demo import forwarded
from arctic_cli.manifest import load_one
from arctic_cluster import Cluster, image, paths

FOLDER = "nim-stand-in"
MOUNT = "/var/lib/arctic/corpus"
IMAGE = "docker.io/arctic/nim-stand-in:1"


def write_image(target: Path, reference: str, command: list[str]) -> None:
    """Write an image that every node's own has the layer of: it differs in its command alone."""
    with tarfile.open(image.archive()) as archive:

        def content(name: str) -> Any:
            file = archive.extractfile(name)
            assert file is not None
            return json.load(file)

        [base] = content("manifest.json")
        config = content(base["Config"])
        layer = archive.getmember(base["Layers"][0])
    config["config"] |= {"Entrypoint": command, "Cmd": []}
    kind, blobs = "application/vnd.oci.image", {}

    def blob(media_type: str, content: Any) -> dict[str, Any]:
        data = json.dumps(content).encode()
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"{kind}.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    [diff_id] = config["rootfs"]["diff_ids"]
    layers = [{"mediaType": f"{kind}.layer.v1.tar", "digest": diff_id, "size": layer.size}]
    manifest = {"schemaVersion": 2, "config": blob("config.v1+json", config), "layers": layers}
    named = blob("manifest.v1+json", manifest) | {"annotations": {"io.containerd.image.name": reference}}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    with tarfile.open(target, "w") as archive:
        for name, data in blobs.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def objects(operator: Cluster, namespace: str, tmp_path: Path) -> Iterator[Objects]:
    folder = operator.volumes / paths.CORPUS / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    program = Path(nim.__file__)
    shutil.copy(program, folder)
    write_image(tmp_path / "nim.tar", IMAGE, ["/usr/bin/python3", f"{MOUNT}/{FOLDER}/{program.name}"])
    operator.load(tmp_path / "nim.tar")
    yield Objects(operator, namespace)
    shutil.rmtree(folder)


def serve(objects: Objects, name: str, **spec: Any) -> None:
    """Apply the example with the stand-in's image."""
    manifest = load_one(EXAMPLES / "nim-inference.yaml", KIND)
    manifest["metadata"]["name"] = name
    given = manifest["spec"]
    given["engine"] = {"name": "nim", "image": IMAGE, "credentials": given["engine"]["credentials"]}
    given["parallelism"] = {"tensor": 1}
    given["rollout"] = {"drainTimeout": "120s"}
    given["template"] = {"volumes": [{"claimName": paths.CORPUS, "mountPath": MOUNT}]}
    given.pop("resources")
    objects.apply(manifest | {"spec": given | spec})


def complete(address: str, words: int = 3) -> int:
    """Ask for so many words, a tenth of a second each; return the answer's status."""
    body = {"model": "arctic", "prompt": "a " * words, "max_tokens": words}
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        return client.post(f"{address}/v1/completions", json=body).status_code


def test_a_nim_serves_drains_and_is_started_again_and_its_troubles_are_told(objects: Objects) -> None:
    objects.kubectl("create", "secret", "generic", "ngc", "--from-literal=NGC_API_KEY=not-a-key")
    serve(objects, "tiny", replicas=2)
    serve(objects, "none", engine={"name": "nim", "image": "registry.invalid/none:1"})
    objects.state(KIND, "tiny", "Ready")
    status = objects.state(KIND, "none", "ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff")
    assert "container nim: " in condition(status, "Degraded")["message"]

    with forwarded(objects.cluster, "tiny", 8000, objects.namespace) as address:
        over, answers = threading.Event(), list[int]()

        def ask() -> None:
            while not over.is_set():
                answers.append(complete(address))

        def measured() -> bool:
            status = objects.status(KIND, "tiny")
            return all(float(status.get(name, 0)) > 0 for name in ("requestsPerSecond", "ttftP99"))

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(ask) for _ in range(4)]
            try:
                objects.eventually("requests are answered", lambda: len(answers) > 10)
                objects.kubectl("patch", KIND, "tiny", "--type=merge", "-p", '{"spec": {"replicas": 1}}')
                objects.eventually("one is drained and gone", lambda: len(objects.pods("tiny", KIND)) == 1)
                objects.eventually("it is told what the other one does", measured)
            finally:
                over.set()
            for client in clients:
                client.result()
        assert set(answers) == {200}

        [pod] = objects.pods("tiny", KIND)
        # Not at once: who is asked to do it would end with it, and kubectl would tell of that.
        later = "(sleep 1; kill 1) > /dev/null 2>&1 &"
        objects.kubectl("exec", pod["metadata"]["name"], "-c", "nim", "--", "sh", "-c", later)
        told = condition(objects.state(KIND, "tiny", "Error"), "Degraded")["message"]
        assert f"pod {pod['metadata']['name']}: container nim exited with code 143" in told
        status = objects.state(KIND, "tiny", "Ready")
        assert condition(status, "Degraded")["status"] == "False"
        assert [each["metadata"]["uid"] for each in objects.pods("tiny", KIND)] == [pod["metadata"]["uid"]]

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(complete, address, 100)
            objects.eventually("it is told that a request runs", lambda: runs(objects, pod))
            objects.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
            assert running.result() == 200


def runs(objects: Objects, pod: dict[str, Any]) -> bool:
    """Whether the sidecar shows a request that runs."""
    path = f"/api/v1/namespaces/{objects.namespace}/pods/{pod['metadata']['name']}:9441/proxy/metrics"
    return "arctic_inference_requests_running 1.0" in objects.cluster.kubectl("get", "--raw", path)
