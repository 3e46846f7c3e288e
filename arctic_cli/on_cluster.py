"""The objects of a cluster as commands see them: by the kubeconfig, in one namespace, with errors as sentences."""

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

from arctic_api import GROUP, VERSION
from arctic_api.crd import KINDS, Kind
from arctic_api.world import Label
from arctic_cli.local import DEFAULT_NAMESPACE

REQUEST_SECONDS = 30
POLL_SECONDS = 1.0
Manifest = dict[str, Any]


NOT_BEGUN = ("is waiting to start", "does not have a host assigned")
"""What the API server says of a log that nobody has begun."""


class NotBegunError(click.ClickException):
    """A container has not started yet; the sentence says what it waits for."""


@dataclass(frozen=True)
class Answer:
    """What the status of an object has said, when it was last looked at, of what was asked of it."""

    token: str
    """By which it is known from earlier ones."""
    over: bool
    """Whether it was the last word."""
    said: Manifest
    """Empty if nothing was said."""
    state: str | None
    """Of the object."""


class OnCluster:
    """One namespace of the cluster that the kubeconfig names."""

    def __init__(self, namespace: str | None, advice: str = "set KUBECONFIG") -> None:
        """Use the context's namespace if none is named; `advice` is for who has no cluster."""
        try:
            from kubernetes import client, config
        except ModuleNotFoundError as error:
            raise click.ClickException(
                "kubernetes is not installed, by which a cluster is spoken to: install arctic-kubernetes[operator]"
            ) from error
        try:
            config.load_kube_config()
            context = config.list_kube_config_contexts()[1]["context"]
        except (config.ConfigException, OSError) as error:
            raise click.ClickException(f"no cluster: {error}: {advice}") from error
        except Exception as error:  # the client stumbles, in many ways, over what is no kubeconfig
            words = " ".join(str(error).split())
            raise click.ClickException(f"no cluster: the kubeconfig can't be read: {words}: {advice}") from error
        self.namespace: str = namespace or context.get("namespace") or DEFAULT_NAMESPACE
        self._custom, self._core = client.CustomObjectsApi(), client.CoreV1Api()

    def get(self, kind: str, name: str) -> Manifest:
        """Return an object of ours."""
        return self._read("metadata", self._custom.get_namespaced_custom_object, *self._of(KINDS[kind]), name)

    def all(self, kind: str) -> list[Manifest]:
        """Return all objects of ours of a kind, by name."""
        listed = self._read("items", self._custom.list_namespaced_custom_object, *self._of(KINDS[kind]))
        return sorted(listed["items"], key=lambda manifest: str(manifest["metadata"]["name"]))

    def patch(self, kind: str, name: str, change: Manifest | list[Manifest]) -> Manifest:
        """Change an object of ours as a merge patch says, or as a JSON patch, which is a list; return it."""
        content = "json-patch" if isinstance(change, list) else "merge-patch"
        patch = partial(self._custom.patch_namespaced_custom_object, _content_type=f"application/{content}+json")
        return self._read("metadata", patch, *self._of(KINDS[kind]), name, change)

    def request(
        self,
        kind: str,
        name: str,
        annotation: str,
        field: str,
        timeout: float,
        *,
        of: str = "",
        over: Callable[[Manifest], bool] = bool,
    ) -> Answer:
        """Ask an object of ours for something by an annotation, and wait for the last word of its status, or a time.

        Args:
            annotation: what is set to a new token.
            field: of the status, which has the token when it answers.
            timeout: seconds.
            of: stands before the token, if anything, with a slash.
            over: whether an answer, empty before there is one, is the last word.
        """
        token = uuid.uuid4().hex[:12]
        value = f"{of}/{token}" if of else token
        manifest = self.patch(kind, name, {"metadata": {"annotations": {annotation: value}}})
        deadline = time.monotonic() + timeout
        while not (answer := _answer(manifest, field, token, over)).over and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            manifest = self.get(kind, name)
        return answer

    def pods(self, kind: str, name: str) -> list[Manifest]:
        """Return the pods of an object of ours, by name."""
        selector = f"{Label.KIND}={kind},{Label.NAME}={name}"
        pods = partial(self._core.list_namespaced_pod, label_selector=selector)
        listed = self._read("items", pods, self.namespace)
        return sorted(listed["items"], key=lambda pod: str(pod["metadata"]["name"]))

    def log(self, pod: str, container: str, *, follow: bool, tail: int | None) -> Iterator[str]:
        """Yield the lines of a container's log; with `follow` until it ends. Raises NotBegunError before it starts."""
        try:
            answer = self._ask(
                self._core.read_namespaced_pod_log,
                pod,
                self.namespace,
                container=container,
                follow=follow,
                **({} if tail is None else {"tail_lines": tail}),
                _preload_content=False,
                _request_timeout=None if follow else REQUEST_SECONDS,
            )
        except click.ClickException as error:
            if any(words in error.message for words in NOT_BEGUN):
                raise NotBegunError(error.message) from error
            raise
        with _in_sentences():
            yield from _lines(answer.stream())

    def post(self, service: str, port: int, path: str, body: Manifest) -> Iterator[str]:
        """Post JSON to a Service, by way of the API server, and yield the lines of the answer as they come."""
        api = self._core.api_client
        place = f"/api/v1/namespaces/{self.namespace}/services/{service}:{port}/proxy/{path}"
        headers = {"Content-Type": "application/json"}
        request = api.param_serialize("POST", place, header_params=headers, body=body, auth_settings=["BearerToken"])
        answer = self._ask(api.call_api, *request, _request_timeout=None)
        if not 200 <= answer.status <= 299:
            raise click.ClickException(f"{service} answers {answer.status}: {_message(answer.read())}")
        with _in_sentences():
            yield from _lines(answer.response.stream())

    def _of(self, kind: Kind) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, kind.plural

    def _read(self, field: str, call: Callable[..., Any], *arguments: Any) -> Manifest:
        """Ask for an object or a list of them, which has a field."""
        answer = self._ask(call, *arguments, _preload_content=False)
        try:
            found = json.loads(answer.data)
        except ValueError:
            found = None
        if isinstance(found, dict) and field in found:
            return found
        raise click.ClickException(
            f"what answers at {self._core.api_client.configuration.host} is no API server, but perhaps a proxy that "
            "wants a login: log in, or write the cluster's own address into the kubeconfig"
        )

    def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with _in_sentences():
            return call(*arguments, **({"_request_timeout": REQUEST_SECONDS} | options))


@contextmanager
def _in_sentences() -> Iterator[None]:
    """Tell what the API server refuses, and a connection that can't be made or breaks, as commands do."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise click.ClickException(_sentence(error)) from error
    except HTTPError as error:
        raise click.ClickException(f"the cluster can't be reached: {error}") from error


def refuse_ended(training: Manifest) -> None:
    """Raise ClickException where a training has ended for good: it hears nothing any more."""
    status = training.get("status", {})
    if ended := status.get("completionTime"):
        raise click.ClickException(
            f"the training ended at {ended} ({status.get('state')}), and no edit makes it go on: make another one from "
            "its weights (model.from)"
        )


def _answer(manifest: Manifest, field: str, token: str, over: Callable[[Manifest], bool]) -> Answer:
    status = manifest.get("status", {})
    said = status.get(field, {})
    said = said if said.get("token") == token else {}
    return Answer(token, over(said), said, status.get("state"))


def _lines(parts: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
    if rest:
        yield rest.decode(errors="replace")


def _message(body: bytes) -> str:
    """Return the sentence of an error, be it the service's or the API server's; "" of a proxy's page."""
    try:
        found = json.loads(body)
        return str(found["error"]["message"] if "error" in found else found["message"])
    except (ValueError, TypeError, KeyError):
        text = body.decode(errors="replace").strip()
        return "" if text.startswith("<") else text


def _sentence(error: Any) -> str:
    return _message((error.body or "").encode()) or f"{error.status} {error.reason}"
