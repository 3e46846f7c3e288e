"""Files as text, compressed or not: what a file is, its first bytes say and not its name. Memory stays bounded."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

if TYPE_CHECKING:
    import zstandard
    from _typeshed import WriteableBuffer

DAMAGED = (EOFError, lzma.LZMAError, zlib.error)
"""What damaged packed files raise, besides OSError without a number."""

_ENCODING = "utf-8-sig"  # what Windows tools write before a text is none of it
_LARGEST_WINDOW = 2**31  # of `zstd --long=31`, which published corpora are packed with
_CHUNK = 1 << 16
_MAGIC = 10  # bytes that tell all formats apart


@contextmanager
def open_text(file: Path) -> Iterator[TextIO]:
    """Open a file to be read as UTF-8, from inside of gzip, Zstandard, xz or bzip2 if it is packed so.

    What is no UTF-8 is replaced; lines end in any of the usual ways. A damaged file raises `DAMAGED` or OSError.
    """
    with ExitStack() as stack:
        stored = stack.enter_context(file.open("rb"))
        content = stack.enter_context(_unpacked(stored))
        yield stack.enter_context(io.TextIOWrapper(content, encoding=_ENCODING, errors="replace"))


def is_packed(file: Path) -> bool:
    """Return whether a file is packed, by its first bytes."""
    with file.open("rb") as stored:
        return _unpacker(stored.read(_MAGIC)) is not None


def _unpacked(stored: BinaryIO) -> BinaryIO:
    unpacker = _unpacker(stored.read(_MAGIC))
    stored.seek(0)
    return stored if unpacker is None else cast("BinaryIO", unpacker(stored))


def _unpacker(start: bytes) -> Callable[[BinaryIO], object] | None:
    """Return what opens a file that begins with these bytes, None where it is not packed."""
    if start.startswith(b"\x1f\x8b"):
        return gzip.open
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.open
    if start.startswith(b"BZh") and start[4:] == b"1AY&SY":
        return bz2.open
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5):
        return lambda stored: io.BufferedReader(_ZstandardFile(stored), _CHUNK)
    return None


class _ZstandardFile(io.RawIOBase):
    """Frame after frame of a file; unlike the library's own reader it notices where one is cut off."""

    def __init__(self, stored: BinaryIO) -> None:
        self._stored = stored
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Whether it can be read: it can."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill a part of `buffer`; 0 at the end."""
        while not self._ready and self._next_chunk():
            pass
        target = memoryview(buffer).cast("B")
        taken = self._ready[: len(target)]
        target[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)

    def _next_chunk(self) -> bool:
        import zstandard

        packed = self._packed or self._stored.read(_CHUNK)
        if not packed:
            if self._frame is not None:
                raise EOFError("the file ends in the middle of a Zstandard frame")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(packed))
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        self._packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return True
