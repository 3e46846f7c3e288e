"""`arctic chat`: talks with a service of a cluster, by way of the API server: nothing needs to be forwarded."""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from arctic_api import inference
from arctic_api.inference import Service
from arctic_cli.on_cluster import OnCluster

_DATA, _DONE = "data: ", "[DONE]"


@click.command()
@click.argument("name")
@click.argument("question", required=False)
@click.option("-n", "--namespace", default=None, help="Its namespace [default: the context's].")
@click.option("--system", help="What the model is told before anything else.")
def chat(name: str, question: str | None, namespace: str | None, system: str | None) -> None:
    """Talk with the model of a service, or ask it one QUESTION; Ctrl-D ends the talk."""
    cluster = OnCluster(namespace)
    spec = cluster.get(inference.KIND, name)["spec"]
    port = spec.get("service", {}).get("port", Service().port)
    if spec.get("service", {}).get("auth"):
        raise click.ClickException(
            f"{name} asks for a key, which the API server does not pass on: run `kubectl port-forward service/{name} "
            f"{port}` and ask http://127.0.0.1:{port}/v1 with one"
        )
    messages = [{"role": "system", "content": system}] if system else []
    for asked in _questions(question):
        messages.append({"role": "user", "content": asked})
        body = {"model": spec["model"].get("servedName", name), "messages": messages, "stream": True}
        answer = ""
        for piece in pieces(cluster.post(name, port, "v1/chat/completions", body)):
            click.echo(piece, nl=False)
            answer += piece
        click.echo()
        messages.append({"role": "assistant", "content": answer})


def _questions(question: str | None) -> Iterator[str]:
    if question is not None:
        yield question
        return
    if not sys.stdin.isatty():
        yield from filter(None, (line.strip() for line in sys.stdin))
        return
    while True:
        try:
            yield click.prompt("you", prompt_suffix="> ")
        except click.Abort:
            click.echo()
            return


def pieces(lines: Iterable[str]) -> Iterator[str]:
    """Yield the text of a streamed answer, piece by piece; ClickException with the server's sentence if it fails."""
    for line in lines:
        if not line.startswith(_DATA) or line == _DATA + _DONE:
            continue
        event: dict[str, Any] = json.loads(line.removeprefix(_DATA))
        if "error" in event:
            raise click.ClickException(event["error"]["message"])
        for choice in event["choices"]:
            yield choice["delta"].get("content") or ""
