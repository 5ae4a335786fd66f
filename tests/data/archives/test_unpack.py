"""Archives of friends unpack whole; archives of strangers get nothing past the folder that they may write to."""

import errno
import io
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from proxygml.data.archives import unpack as archives
from proxygml.data.archives.unpack import unpack, unpacked
from proxygml.data.images.files import entries
from proxygml.data.images.folders import STAMP, ImageFolders
from proxygml.errors import DatasetError, OverwriteError

FILES = {"top/a.txt": b"a" * 3000, "top/deep/b.txt": b"", "top/ü.txt": b"u"}


def write_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes] = FILES) -> Path:
    mode = {".tgz": "w:gz", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write(path: Path, files: dict[str, bytes] = FILES) -> Path:
    return write_zip(path, files) if path.suffix == ".zip" else write_tar(path, files)


def everything_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("suffix", archives.ARCHIVE_SUFFIXES)
def test_archives_unpack_whole(tmp_path: Path, suffix: str) -> None:
    archive = write(tmp_path / f"data{suffix}")
    folder = unpacked(archive, tmp_path / "out", {})
    assert folder == tmp_path / "out"
    for name, content in FILES.items():
        assert (folder / name).read_bytes() == content


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
@pytest.mark.parametrize(
    "name",
    ["../escaped", "top/../../escaped", "/tmp/escaped", "..\\escaped", "C:\\escaped", "\\\\host\\share\\escaped"],
)
def test_no_path_leaves_the_folder(tmp_path: Path, suffix: str, name: str) -> None:
    archive = write(tmp_path / f"hostile{suffix}", {"top/a.txt": b"a", name: b"escaped"})
    before = everything_in(tmp_path)
    with pytest.raises(DatasetError, match="outside of its folder"):
        unpacked(archive, tmp_path / "out", {})
    assert everything_in(tmp_path) == before


TAR_KINDS = {
    "link": [tarfile.SYMTYPE, tarfile.LNKTYPE],
    "device": [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
}


@pytest.mark.parametrize(("kind", "type_"), [(kind, type_) for kind, types in TAR_KINDS.items() for type_ in types])
def test_tar_links_and_devices_are_refused(tmp_path: Path, kind: str, type_: bytes) -> None:
    archive = tmp_path / "hostile.tar"
    with tarfile.open(archive, "w") as opened:
        info = tarfile.TarInfo("way_out")
        info.type, info.linkname = type_, "../.."
        opened.addfile(info)
        behind = tarfile.TarInfo("way_out/escaped")
        opened.addfile(behind, io.BytesIO(b""))
    before = everything_in(tmp_path)
    with pytest.raises(DatasetError, match=f"'way_out', a {kind}"):
        unpacked(archive, tmp_path / "out", {})
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(("kind", "mode"), [("link", stat.S_IFLNK), ("device", stat.S_IFCHR), ("device", stat.S_IFIFO)])
def test_zip_links_and_devices_are_refused(tmp_path: Path, kind: str, mode: int) -> None:
    archive = tmp_path / "hostile.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        info = zipfile.ZipInfo("way_out")
        info.external_attr = (mode | 0o777) << 16
        opened.writestr(info, "/etc")
        opened.writestr("way_out/escaped", b"")
    before = everything_in(tmp_path)
    with pytest.raises(DatasetError, match=f"'way_out', a {kind}"):
        unpacked(archive, tmp_path / "out", {})
    assert everything_in(tmp_path) == before


def test_a_program_bit_is_not_taken_over(tmp_path: Path) -> None:
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as opened:
        info = tarfile.TarInfo("program")
        info.mode = 0o4777
        opened.addfile(info, io.BytesIO(b""))
    folder = unpacked(archive, tmp_path / "out", {})
    assert not (folder / "program").stat().st_mode & (stat.S_ISUID | stat.S_IXUSR)


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_bombs_are_stopped(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE_GROWTH", 2**16)
    archive = write(tmp_path / f"bomb{suffix}", {"zeros": bytes(2**23)})
    with pytest.raises(DatasetError, match="200 times its own size"):
        unpacked(archive, tmp_path / "out", {})
    assert everything_in(tmp_path) == {archive.name}


def test_too_many_files_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE_MEMBERS", 10)
    archive = write(tmp_path / "bomb.tgz", {f"{number}": b"" for number in range(2000)})
    with pytest.raises(DatasetError, match="too many files"):
        unpacked(archive, tmp_path / "out", {})
    assert everything_in(tmp_path) == {archive.name}


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_a_download_that_was_cut_is_named(tmp_path: Path, suffix: str) -> None:
    noise = bytes(range(256)) * 40
    archive = write(tmp_path / f"cut{suffix}", {"a": noise, "b": noise})
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 3])
    with pytest.raises(DatasetError, match=r"cut.*cannot be unpacked.*complete"):
        unpacked(archive, tmp_path / "out", {})
    assert everything_in(tmp_path) == {archive.name}


@pytest.mark.parametrize("hurt", ["cut at a header", "cut inside a header", "a byte of a header"])
def test_a_plain_tar_is_named_where_a_header_is_lost(tmp_path: Path, hurt: str) -> None:
    archive = write(tmp_path / "hurt.tar", {"a": bytes(512), "b": bytes(512)})
    content = bytearray(archive.read_bytes())
    second = content.index(b"b\0", 1024)
    if hurt == "a byte of a header":
        content[second + 100] ^= 1
    else:
        del content[second + (200 if "inside" in hurt else 0) :]
    archive.write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot be unpacked.*breaks off, or is damaged"):
        unpacked(archive, tmp_path / "out", {})
    assert everything_in(tmp_path) == {"hurt.tar"}


def test_a_list_that_was_added_later_is_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write(root / "car_ims.tgz", {"car_ims/a": b"1"})
    unpacked(root, tmp_path / "out", {"car_ims": "car_ims"})
    (root / "cars_annos.mat").write_bytes(b"2")
    assert (unpacked(root, tmp_path / "out", {"car_ims": "car_ims"}) / "cars_annos.mat").read_bytes() == b"2"


@pytest.mark.parametrize("suffix", [".zip", ".tgz", ".tar.bz2", ".tar.xz"])
def test_a_download_that_was_damaged_is_named(tmp_path: Path, suffix: str) -> None:
    archive = write(tmp_path / f"hurt{suffix}", {"a": np.random.default_rng(0).bytes(100_000)})
    content = bytearray(archive.read_bytes())
    content[50_000:50_100] = bytes(100)
    archive.write_bytes(content)
    with pytest.raises(DatasetError, match=r"hurt.*cannot be unpacked.*complete"):
        unpacked(archive, tmp_path / "out", {})
    assert everything_in(tmp_path) == {archive.name}


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_to_full_disk(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "_write", write_to_full_disk)
    with pytest.raises(DatasetError, match="No space left") as raised:
        unpacked(write(tmp_path / "data.zip"), tmp_path / "out", {})
    assert "complete" not in str(raised.value)


@pytest.mark.parametrize("suffix", archives.ARCHIVE_SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_what_is_no_archive_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    archive = tmp_path / f"page{suffix}"
    archive.write_bytes(content)
    with pytest.raises(DatasetError, match=r"page.*cannot be unpacked"):
        unpacked(archive, tmp_path / "out", {})


def test_a_locked_zip_is_named(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "locked.zip", {"a": b"a"})
    content = bytearray(archive.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    archive.write_bytes(content)
    with pytest.raises(DatasetError, match="encrypted"):
        unpacked(archive, tmp_path / "out", {})


def write_raw_zip(path: Path, names: dict[bytes, bytes], system: int = 3, extra: bytes = b"") -> Path:
    """A zip whose names are these bytes, without the flag that says that they are UTF-8."""
    placeholders = {bytes([ord("a") + number]) * len(name): name for number, name in enumerate(names)}
    with zipfile.ZipFile(path, "w") as archive:
        for placeholder, name in placeholders.items():
            info = zipfile.ZipInfo(placeholder.decode())
            info.create_system, info.extra = system, extra
            archive.writestr(info, names[name])
    content = path.read_bytes()
    for placeholder, name in placeholders.items():
        assert content.count(placeholder) == 2
        content = content.replace(placeholder, name)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_that_macos_wrote_without_saying_how_are_read(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [unicodedata.normalize(form, name) for name in ("日本/ガ.jpg", "Café/ü.jpg", "plain/a.jpg")]
    archive = write_raw_zip(tmp_path / "mac.zip", {name.encode(): b"1" for name in names})
    folder = unpacked(archive, tmp_path / "out", {})
    assert everything_in(folder) == {STAMP, *names, *(name.partition("/")[0] for name in names)}
    assert "does not say" not in capsys.readouterr().err


def test_names_in_other_characters_are_read_as_stated_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name may be repeated in UTF-8; where it is not, nobody knows which characters a byte stands for."""
    raw = "日本/a.jpg".encode("cp932")
    stated = struct.pack("<BI", 1, zlib.crc32(raw)) + "日本/a.jpg".encode()
    extra = struct.pack("<HH", 0x7075, len(stated)) + stated
    folder = unpacked(write_raw_zip(tmp_path / "said.zip", {raw: b"1"}, extra=extra), tmp_path / "said", {})
    assert (folder / "日本" / "a.jpg").read_bytes() == b"1"
    assert "does not say" not in capsys.readouterr().err
    unpacked(write_raw_zip(tmp_path / "silent.zip", {raw: b"1"}), tmp_path / "silent", {})
    printed = " ".join(capsys.readouterr().err.split())
    assert f"does not say in which characters its names are written ({raw.decode('cp437')})" in printed


def test_backslashes_separate_folders_as_windows_writes_them(tmp_path: Path) -> None:
    expected = {"top", "top/a", "top/a/1.jpg", "top/empty", STAMP}
    names = {b"top\\a\\1.jpg": b"1", b"top\\empty\\": b""}
    for number, system in enumerate((0, 3)):
        archive = write_raw_zip(tmp_path / f"{number}.zip", names, system)
        assert everything_in(unpacked(archive, tmp_path / f"zip{number}", {})) == expected
    mixed = write_raw_zip(tmp_path / "mixed.zip", {b"top/a\\1.jpg": b"1", b"top/empty\\": b""}, system=0)
    assert everything_in(unpacked(mixed, tmp_path / "mixed", {})) == expected
    tar = write_tar(tmp_path / "windows.tar", {"top\\a\\1.jpg": b"1"})
    assert everything_in(unpacked(tar, tmp_path / "tar", {})) == expected - {"top/empty"}
    linux = write(tmp_path / "linux.tar", {"top/a\\b.jpg": b"1"})  # where a name may hold one
    assert everything_in(unpacked(linux, tmp_path / "linux", {})) == {"top", "top/a\\b.jpg", STAMP}


def test_odd_names_in_a_tar_are_kept(tmp_path: Path) -> None:
    names = [
        "./a/1.jpg",
        "a//2.jpg",
        "./b c/ü 3.jpg",
        "a/-rf",
        "a/x\ny.jpg",
        f"{'d' * 200}/{'e' * 200}.jpg",
        "a/. .jpg",
    ]
    folder = unpacked(write(tmp_path / "odd.tar", dict.fromkeys(names, b"1")), tmp_path / "out", {})
    for name in names:
        assert (folder / name).read_bytes() == b"1"


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_what_macos_adds_is_left_out_and_named(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["a/1.jpg", "__MACOSX/a/._1.jpg", "__MACOSX/._a", "a/._1.jpg", ".DS_Store", "a/.DS_Store"]
    archive = write(tmp_path / f"mac{suffix}", dict.fromkeys(files, b"1"))
    assert everything_in(unpacked(archive, tmp_path / "out", {})) == {"a", "a/1.jpg", STAMP}
    assert "5 left out: left by a file manager: 5 (__MACOSX/a/._1.jpg, __MACOSX/._a" in " ".join(
        capsys.readouterr().err.split()
    )


def test_what_is_put_into_an_unpacked_folder_is_not_named_as_left_out(tmp_path: Path) -> None:
    folder = unpacked(write(tmp_path / "data.zip"), tmp_path / "out", {})
    assert [entry.path.name for entry in entries(folder)] == ["top"]


def test_an_unpacked_folder_is_used_again(tmp_path: Path) -> None:
    archive = write(tmp_path / "data.tgz")
    folder = unpacked(archive, tmp_path / "out", {})
    (folder / "witness").touch()
    assert (unpacked(archive, tmp_path / "out", {}) / "witness").exists()


def test_another_archive_is_unpacked_beside_it_and_only_by_force(tmp_path: Path) -> None:
    """The catalog that uses the first one may still be needed: prepare removes it when another has taken its place."""
    one = write(tmp_path / "one.zip")
    assert unpacked(one, tmp_path / "out", {}) == tmp_path / "out"
    other = write(tmp_path / "other.zip", {"new": b""})
    with pytest.raises(OverwriteError, match="--force"):
        unpacked(other, tmp_path / "out", {})
    assert unpacked(other, tmp_path / "out", {}, force=True) == tmp_path / "out.2"
    assert everything_in(tmp_path / "out.2") == {"new", STAMP}
    assert (tmp_path / "out" / "top" / "a.txt").exists()
    assert unpacked(other, tmp_path / "out", {}) == tmp_path / "out.2"
    assert unpacked(one, tmp_path / "out", {}) == tmp_path / "out"


def test_a_folder_of_another_catalog_is_not_taken(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one.zip"), write(tmp_path / "other.zip", {"new": b""})
    assert unpacked(one, tmp_path / "out.2", {}) == tmp_path / "out.2"  # of a catalog out.2.parquet
    assert unpacked(other, tmp_path / "out", {}) == tmp_path / "out"
    assert unpacked(one, tmp_path / "out", {}, force=True) == tmp_path / "out.3"
    assert ImageFolders(tmp_path / "out").superseded(tmp_path / "out.3") == [tmp_path / "out"]
    assert ImageFolders(tmp_path / "out.2").superseded(tmp_path / "out.2") == []
    assert ImageFolders(tmp_path / "out").superseded(tmp_path / "elsewhere") == []


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(OverwriteError, match="there already"):
        unpacked(write(tmp_path / "data.zip"), tmp_path / "out", {}, force=True)
    assert everything_in(tmp_path / "out") == {"thesis.txt"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    archive = write(tmp_path / "data.zip")
    original: Callable[..., int] = archives._write

    def write_once(*arguments: object) -> int:
        original(*arguments)
        raise stop

    monkeypatch.setattr(archives, "_write", write_once)
    with pytest.raises((KeyboardInterrupt, DatasetError)):
        unpacked(archive, tmp_path / "out", {})
    assert everything_in(tmp_path) == {archive.name}


def test_known_archives_in_a_folder_are_unpacked_beside_its_lists(tmp_path: Path) -> None:
    root = tmp_path / "download"
    (root / "Img").mkdir(parents=True)
    (root / "Eval").mkdir()
    (root / "Eval" / "list.txt").write_text("1")
    write(root / "Img" / "img.zip", {"img/1.jpg": b"1"})
    write(root / "unknown.zip")
    before = everything_in(root)
    folder = unpacked(root, tmp_path / "out", {"img": "img"})
    assert everything_in(folder) == {"Eval", "Eval/list.txt", "Img", "Img/img", "Img/img/1.jpg", STAMP}
    assert everything_in(root) == before


def test_archives_inside_of_the_archive_are_unpacked(tmp_path: Path) -> None:
    inner = write(tmp_path / "img.zip", {"img/1.jpg": b"1", "img.zip": b"not again"})
    outer = write(tmp_path / "all.tgz", {"In shop/Img/img.zip": inner.read_bytes()})
    folder = unpacked(outer, tmp_path / "out", {"img": "img"})
    assert (folder / "In shop" / "Img" / "img" / "1.jpg").exists()


def test_what_is_unpacked_already_stays_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "img.zip")
    (tmp_path / "img").mkdir()
    assert unpacked(tmp_path, tmp_path / "out", {"img": "img"}) == tmp_path
    assert not (tmp_path / "out").exists()


def test_unpack_takes_no_link_that_is_there_for_a_way_out(tmp_path: Path) -> None:
    """A member may come twice; the second is written over the first, never through it."""
    archive = tmp_path / "twice.tar"
    with tarfile.open(archive, "w") as opened:
        for content in (b"first", b"second"):
            info = tarfile.TarInfo("a")
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"second"
