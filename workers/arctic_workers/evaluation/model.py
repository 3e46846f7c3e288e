"""The model that is evaluated: an API, or weights that are served for it."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from arctic_workers.evaluation.endpoint import Endpoint
from arctic_workers.evaluation.records import claim
from arctic_workers.evaluation.run import Evaluation, Say
from arctic_workers.evaluation.serving import NAME, has_chat_template, served, weights_of

SERVER_LOG = "server.log"


@dataclass(frozen=True)
class Model:
    """Where a model is, and how it is asked."""

    place: str
    """Address of an API, up to and with `/v1`; or a folder in the Hugging Face layout, or a run's checkpoint."""
    name: str
    """Name of the model: at that API, and in results."""
    api: str | None = None
    """`chat` or `completions`; None for chat, of a folder only if it has a template."""
    key: str | None = None
    """Key that the API takes."""

    @property
    def is_asked(self) -> bool:
        """Whether it is behind an API already."""
        return is_url(self.place)


def is_url(place: str) -> bool:
    """Return whether a place is an API's address."""
    return place.startswith(("http://", "https://"))


@contextmanager
def opened(model: Model, evaluation: Evaluation, say: Say) -> Iterator[Endpoint]:
    """Yield the endpoint at which a model is asked, once the evaluation's folder is its own.

    Raises:
        ModelError: there is no such model.
        ServingError: it can't be served.
        MixedError: the folder is another evaluation's.
    """
    with ExitStack() as stack:
        folder = None if model.is_asked else stack.enter_context(weights_of(Path(model.place)))
        chats = has_chat_template(folder) if folder is not None and model.api is None else model.api != "completions"
        asked = {"model": model.place, "name": model.name, "api": "chat" if chats else "completions"}
        claim(evaluation.folder, {**asked, **asdict(evaluation.sampling)})
        if folder is None:
            endpoint = Endpoint(model.place, model.name, is_chat=chats, key=model.key)
        else:
            say("serving the model on this machine")
            url = stack.enter_context(served(folder, evaluation.folder / SERVER_LOG))
            endpoint = Endpoint(url, NAME, is_chat=chats)
        yield stack.enter_context(closing(endpoint))
