"""A model's tokenizer, as its folder keeps it."""

from pathlib import Path

from tokenizers import Tokenizer

from arctic_workers.chat.template import TextError

TOKENIZER_FILE = "tokenizer.json"


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder, which takes each text whole. TextError with a sentence if it can't be read.

    Many published ones were saved as they last cut and padded batches, which transformers undoes at each call.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise TextError(f"{path} is not there: put the model's {TOKENIZER_FILE} into its folder")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no type of its own for it
        raise TextError(f"{path} cannot be read as a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
