"""Which model a group names, and how long its requests may be, for every engine. Reads config.json, no more."""

from dataclasses import dataclass
from pathlib import Path

from arctic_api.inference import Attention
from arctic_api.world import InferenceGroup
from arctic_model.config import CONFIG_FILE, ArcticConfig, read_json
from arctic_workers.inference.engine import Refused

QUANTIZATION = "quantization_config"
"""Key of config.json that says in which format weights are stored, if not as they are computed with."""


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


def max_length(attention: Attention, config: ArcticConfig) -> int:
    """Most tokens of a request. Raises Refused where the model does not reach as far as was asked for."""
    asked, positions = int(attention.max_length), config.max_position_embeddings
    # A manifest comes with the default filled in, so nobody can tell whether it was written: it gives way.
    if asked > positions and asked != Attention().max_length:
        raise Refused(
            f"attention.maxLength is {asked} and the model has {positions} positions; "
            f"write attention.maxLength: {positions} or less"
        )
    return min(asked, positions)
