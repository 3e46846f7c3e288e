"""Hidden states as bytes on their way from one pipeline rank to the next."""

import torch
from torch import Tensor

from arctic_api.engine_options import PipelineFormat
from arctic_model import devices, fp8
from arctic_model.devices import Wait

_PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16}


def encode_states(x_TD: Tensor, wire: PipelineFormat) -> Tensor:
    """Return fp32 hidden states as bytes in the host's memory.

    In fp8 each row has a scale of its own: its neighbours don't matter.
    """
    if wire != "fp8":
        raw = x_TD.to(_PLAIN[wire]).contiguous().view(torch.uint8).flatten()
    else:
        values_TD, scale_T = fp8.quantize(x_TD)
        raw = torch.cat([values_TD.view(torch.uint8).flatten(), scale_T.view(torch.uint8)])
    return devices.tensor_on_host(raw, Wait.STATES)


def decode_states(raw: Tensor, rows: int, hidden_size: int, wire: PipelineFormat) -> Tensor:
    """Return the hidden states [T, D] in fp32 that `encode_states` was given, as near as the format keeps them.

    They are where the bytes are. RuntimeError if the bytes are not those of so many rows.
    """
    if wire != "fp8":
        return raw.view(_PLAIN[wire]).view(rows, hidden_size).float()
    values, scale = raw[: rows * hidden_size], raw[rows * hidden_size :]
    # The scales begin where the values end, at any address: views of fp32 want a multiple of 4.
    scale_T = scale.clone().view(torch.float32).view(rows)
    return fp8.dequantize(values.view(fp8.DTYPE).view(rows, hidden_size), scale_T)
