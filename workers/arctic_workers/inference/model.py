"""Which model a group names, and how long its requests may be, for every engine. Reads config.json, no more."""

from dataclasses import dataclass
from pathlib import Path

from arctic_api.inference import Attention
from arctic_api.world import InferenceGroup
from arctic_model.config import CONFIG_FILE, ArcticConfig, read_json
from arctic_model.quantization import KEY as QUANTIZATION
from arctic_workers.inference.engine import UNLIMITED, Refused


@dataclass(frozen=True)
class Model:
    """A checkpoint in the Hugging Face layout."""

    folder: Path
    config: ArcticConfig
    quantized: bool
    """Whether its weights are stored in a format of their own, which config.json then names."""


def read_model(group: InferenceGroup) -> Model:
    """Read what the group serves. Raises Refused."""
    pipeline = group.spec.parallelism.pipeline
    if len(group.hosts) != pipeline:
        raise Refused(f"the group has {len(group.hosts)} hosts and parallelism.pipeline is {pipeline}")
    if "://" in group.model_folder:
        raise Refused(f"{group.model_folder} is not yet supported; write model.uri: file:///FOLDER of a claim")
    folder = Path(group.locate(group.model_folder))
    path = folder / CONFIG_FILE
    try:
        data = read_json(path)
        quantized = data.pop(QUANTIZATION, None) is not None
        return Model(folder, ArcticConfig.from_dict(data, str(path)), quantized)
    except ValueError as error:
        raise Refused(str(error)) from None


def max_length(attention: Attention, positions: int, reach: int | None = None) -> int:
    """Most tokens of a request. Raises Refused where the model does not reach as far as was asked for.

    `reach` is how many tokens attention sees at most, None for all: a request may be longer than the model's positions
    where no two tokens that meet are further apart than these.
    """
    unlimited = attention.max_length == "unlimited"
    asked = UNLIMITED if unlimited else int(attention.max_length)
    if asked <= positions or (reach is not None and reach <= positions):
        return asked
    # A manifest comes with the default filled in, so nobody can tell whether it was written: it gives way.
    if asked == Attention().max_length:
        return positions
    if reach is not None:
        raise Refused(
            f"attention.maxLength is {attention.max_length}, the window and its sinks reach {reach} tokens, and the "
            f"model has {positions} positions; write attention.window and sinks of {positions} together or less"
        )
    if unlimited:
        raise Refused(
            "attention.maxLength is unlimited, and without a window keys and values have no bound; "
            "write attention.window, or a number of tokens"
        )
    raise Refused(
        f"attention.maxLength is {asked} and the model has {positions} positions; "
        f"write attention.maxLength: {positions} or less"
    )
