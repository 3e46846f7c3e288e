"""`arctic demo`: the whole path on this machine, for people to watch.

A two-node cluster, the chart, a training in three stages, an endpoint over two nodes, one question; beside it a small
real model, imported, that knows an answer. What is done already is skipped, so that a second run only asks again.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from arctic_api.world import Label
from arctic_cli import small_model
from arctic_cluster import Cluster
from arctic_cluster.manifests import SYSTEM_NAMESPACE
from arctic_cluster.paths import MODELS

NAMESPACE = "default"
TRAINING_LIMIT_SECONDS = 900.0
SERVING_LIMIT_SECONDS = 300.0
ASKING_LIMIT_SECONDS = 60.0
BEGINNING = "CREATE TABLE"
QUESTION = "What is the capital of France?"
LONGEST_ANSWER = 64
ROOT = Path(__file__).parents[1]


class Steps:
    """Numbered headings with the seconds that each step took."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._number = 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print the title now, and its seconds when it is done."""
        self._number += 1
        click.secho(f"\n== [{self._number}/{self._total}] {title}", bold=True)
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        click.echo(f"== done in {seconds:.1f} s")
        _note_phase(title.partition(":")[0], seconds)


def _note_phase(phase: str, seconds: float) -> None:
    """Note it where `benchmarks.demo` asked for it, as scripts/phase.sh does."""
    if notes := os.environ.get("ARCTIC_PHASES"):
        with open(notes, "a") as file:
            file.write(json.dumps({"phase": phase, "seconds": round(seconds, 1)}) + "\n")


def get(cluster: Cluster, kind: str, name: str) -> dict[str, Any]:
    """Return an object of the demo's namespace."""
    found: dict[str, Any] = json.loads(cluster.kubectl("get", kind, name, "-n", NAMESPACE, "-o", "json"))
    return found


def watch_training(cluster: Cluster, name: str) -> None:
    """Show `kubectl get -w` until the training has ended; raise if it did not succeed."""
    command = cluster.command("kubectl", "get", "arctictrainings", name, "-n", NAMESPACE, "-w")
    watch = subprocess.Popen(command, stdout=sys.stdout)
    try:
        status = wait_for(cluster, "arctictraining", name, {"Succeeded", "Failed"}, TRAINING_LIMIT_SECONDS)
        time.sleep(1)  # lets the watch print the last line
    finally:
        watch.terminate()
        watch.wait()
    if status["state"] != "Succeeded":
        raise click.ClickException(f"the training failed: {_messages(status)}")
    for stage in status["stages"]:
        losses = f"{stage['initialValidationLoss']} -> {stage['validationLoss']}"
        click.echo(f"   stage {stage['name']:12} {stage['tokens']:>9} tokens   held-out loss {losses}")


def wait_for(cluster: Cluster, kind: str, name: str, states: set[str], limit: float) -> dict[str, Any]:
    """Return the status once its state is one of `states`; raise after `limit` seconds."""
    end = time.monotonic() + limit
    while True:
        status: dict[str, Any] = get(cluster, kind, name).get("status", {})
        if status.get("state") in states:
            return status
        if time.monotonic() > end:
            raise click.ClickException(
                f"{kind} {name} is {status.get('state')!r} after {limit:.0f} s, not {' or '.join(sorted(states))}: "
                f"{_messages(status)}"
            )
        time.sleep(1)


def _messages(status: dict[str, Any]) -> str:
    conditions = status.get("conditions", [])
    return "; ".join(f"{each['type']}={each['status']} {each.get('message', '')}".strip() for each in conditions)


@contextlib.contextmanager
def forwarded(cluster: Cluster, service: str, port: int, namespace: str = NAMESPACE) -> Iterator[str]:
    """Yield the address at which this machine reaches a Service, by `kubectl port-forward`."""
    command = cluster.command("kubectl", "port-forward", "-n", namespace, f"service/{service}", f":{port}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
        try:
            assert forward.stdout is not None
            line = forward.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            if not found:
                raise click.ClickException(f"kubectl port-forward to {service} said {line!r}")
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            forward.terminate()


def ask(address: str, model: str, prompt: str) -> str:
    """Return the completion of a prompt."""
    text: str = _choice(address, "completions", {"model": model, "prompt": prompt})["text"]
    return text


def chat(address: str, model: str, question: str) -> str:
    """Return the answer to a question."""
    messages = [{"role": "user", "content": question}]
    text: str = _choice(address, "chat/completions", {"model": model, "messages": messages})["message"]["content"]
    return text


def _choice(address: str, path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of the OpenAI API to a greedy request; asks again when told to, as its clients do."""
    end = time.monotonic() + ASKING_LIMIT_SECONDS
    body = json.dumps({**asked, "max_tokens": LONGEST_ANSWER, "temperature": 0}).encode()
    request = urllib.request.Request(  # noqa: S310 (an address of this machine)
        f"{address}/v1/{path}", body, {"Content-Type": "application/json"}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with direct.open(request, timeout=60) as answer:
                choice: dict[str, Any] = json.load(answer)["choices"][0]
                return choice
        except urllib.error.HTTPError as error:
            wait = float(error.headers.get("Retry-After", "nan"))
            if not time.monotonic() + wait < end:
                raise click.ClickException(f"{address} answers {error.code}: {error.read().decode()}") from error
            click.echo(f"{address} answers {error.code}; asking again in {wait:.0f} s")
            time.sleep(wait)


def install_operator(cluster: Cluster, *values: str) -> None:
    """Install or upgrade the chart with the values of the local cluster; `values` are arguments to helm.

    What a helm has left unfinished that was killed, as with its terminal, is taken away: no other would go on with it.
    """
    if cluster.helm("list", "--pending", "-q", "-n", SYSTEM_NAMESPACE).split():
        cluster.helm("uninstall", "arctic", "-n", SYSTEM_NAMESPACE, "--wait")
    chart = ROOT / "charts" / "arctic"
    release = ("upgrade", "--install", "arctic", str(chart), "-n", SYSTEM_NAMESPACE, "--create-namespace")
    cluster.helm(
        *release, "-f", str(chart / "values-local.yaml"), *cluster.helm_values(), *values, "--wait", "--timeout", "3m"
    )


def apply_example(cluster: Cluster, file: str) -> None:
    """Apply a manifest of examples/."""
    cluster.kubectl("apply", "-n", NAMESPACE, "-f", str(ROOT / "examples" / file))


def serve(cluster: Cluster, name: str) -> None:
    """Apply the example of a service, wait until it is ready, and show it with its pods."""
    apply_example(cluster, f"{name}-inference.yaml")
    wait_for(cluster, "arcticinference", name, {"Ready"}, SERVING_LIMIT_SECONDS)
    click.echo(cluster.kubectl("get", "arcticinferences", name, "-n", NAMESPACE))
    click.echo(cluster.kubectl("get", "pods", "-n", NAMESPACE, "-l", f"{Label.NAME}={name}", "-o", "wide"))


def show_answer(cluster: Cluster, name: str, does: str, prompt: str, ask: Callable[[str, str, str], str]) -> None:
    """Ask a service, and show what it says."""
    service = get(cluster, "arcticinference", name)
    with forwarded(cluster, name, service["spec"]["service"]["port"]) as address:
        answer = ask(address, name, prompt)
    click.echo(f"{service['status']['url']} {does} {prompt!r} with:")
    click.secho(answer, fg="green")


@click.command()
def demo() -> None:
    """Train and serve a small Arctic on a two-node cluster on this machine, and serve a small real model beside it."""
    steps = Steps(7)
    cluster = Cluster("demo")
    with steps.step("start Kubernetes on two nodes"):
        cluster.up(nodes=2)
        cluster.create_claims(NAMESPACE)  # one that runs since an older release may lack some
        click.echo(cluster.kubectl("get", "nodes", "-o", "wide"))
    with small_model.importing(cluster.volumes / MODELS / small_model.NAME) as wait_for_import:
        with steps.step("install the operator with Helm"):
            install_operator(cluster)
            click.echo(cluster.kubectl("get", "pods", "-n", SYSTEM_NAMESPACE, "-o", "wide"))
        with steps.step("train in three stages on two nodes: kubectl apply -f examples/tiny-training.yaml"):
            apply_example(cluster, "tiny-training.yaml")
            watch_training(cluster, "tiny")
        with steps.step("serve over two nodes: kubectl apply -f examples/tiny-inference.yaml"):
            serve(cluster, "tiny")
        with steps.step("ask it"):
            show_answer(cluster, "tiny", "completes", BEGINNING, ask)
        with steps.step("serve a real model beside it: kubectl apply -f examples/smollm2-inference.yaml"):
            if fault := wait_for_import():
                click.secho(f"left out, as it could not be imported: {fault}", fg="yellow")
            else:
                serve(cluster, small_model.NAME)
        if not fault:
            with steps.step("ask it in chat"):
                show_answer(cluster, small_model.NAME, "answers", QUESTION, chat)
    click.echo(
        f"""
The cluster keeps running. To look further:
  export KUBECONFIG={cluster.kubeconfig} PATH={cluster.binaries}:$PATH
  kubectl get arctic                                      # all of our kinds; -w takes one, such as ainf
  kubectl describe arctictraining tiny                    # stages, conditions, checkpoints
  kubectl explain arctictraining.spec.curriculum
  kubectl logs -l arctic.dev/name=tiny --prefix --tail=20 # of the workers
  kubectl logs -n {SYSTEM_NAMESPACE} deployment/arctic-operator
  kubectl port-forward service/tiny 8000                  # then: curl http://127.0.0.1:8000/v1/models
  kubectl get --raw "/api/v1/namespaces/default/pods/POD:9441/proxy/metrics"   # metrics of a worker
  make clean                                              # ends this machine's clusters; what was trained stays"""
    )
