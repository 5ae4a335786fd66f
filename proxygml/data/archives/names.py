"""The names of files in archives: in which characters they were written, and what separates their folders.

Whether a name is safe to write to is for unpack.py to check.
"""

import struct
import zlib
from pathlib import PurePosixPath
from zipfile import ZipInfo

_UTF8 = 0x800
"""The flag of a zip's entry that says that its name is UTF-8. The archiver of macOS writes UTF-8 without it."""

_UNICODE_PATH = 0x7075
"""The kind of extra field that repeats a name in UTF-8 (Info-ZIP)."""

_DOS = 0
"""The system that a zip's entry was made on, where backslashes separate folders."""


def zip_name(info: ZipInfo) -> tuple[str, bool]:
    """The name of a zip's entry with `/` between its folders; and whether its characters are known, not guessed."""
    name, known = _decoded(info)
    return _with_slashes(name, info.create_system == _DOS), known


def tar_name(name: str) -> str:
    """The name of a tar's member with `/` between its folders."""
    return _with_slashes(name, False)


def is_of_a_file_manager(name: str) -> bool:
    """Whether macOS has put this file or folder into the archive, beside what was packed."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or (bool(parts) and (parts[-1].startswith("._") or parts[-1] == ".DS_Store"))


def _decoded(info: ZipInfo) -> tuple[str, bool]:
    if info.flag_bits & _UTF8 or info.filename.isascii():
        return info.filename, True
    try:
        raw = info.orig_filename.encode("cp437")  # how zipfile has decoded it
    except UnicodeEncodeError:
        return info.filename, True  # from the extra field, which zipfile reads since Python 3.13
    if stated := _unicode_path(info.extra, raw):
        return stated, True
    try:
        return raw.decode("utf-8"), True
    except UnicodeDecodeError:
        return info.filename, False


def _unicode_path(extra: bytes, raw: bytes) -> str:
    """The name in the extra field, if there is one that was made for this very name; else empty."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and field[:5] == struct.pack("<BI", 1, zlib.crc32(raw)):
            return field[5:].decode("utf-8", errors="replace")
    return ""


def _with_slashes(name: str, on_dos: bool) -> str:
    """Backslashes separate folders in names made on DOS or Windows, and in names that have no other separator."""
    return name.replace("\\", "/") if on_dos or "/" not in name else name
