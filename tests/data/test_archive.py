"""Unpacking: what honest archives hold arrives, what evil ones hold does not."""

import io
import os
import shutil
import stat
import tarfile
import zipfile
from types import SimpleNamespace

import pytest

from wsss_afa.data import archive as module
from wsss_afa.data.archive import list_files, unpack
from wsss_afa.errors import UserError

FILES = {"data/a.txt": b"one", "data/deep/b.txt": b"two" * 1000, "data/empty": b""}


def make_tar(path, files=FILES, mode="w", members=()):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in members:
            tar.addfile(info)
    return path


def make_zip(path, files=FILES, infos=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
        for info, content in infos:
            file.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
def test_everything_arrives(kind, tmp_path):
    mode = {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}
    path = tmp_path / f"x.{kind}"
    make_zip(path) if kind == "zip" else make_tar(path, mode=mode[kind])
    told = []

    def track(members, description):
        told.extend([description, len(members)])
        return members

    assert unpack([path], tmp_path / "out", "data", track)
    assert contents(tmp_path / "out") == {k.removeprefix("data/"): v for k, v in FILES.items()}
    assert told == [path.name, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["out", path.name])


def test_several_archives_become_one_folder(tmp_path):
    paths = [make_tar(tmp_path / "a.tar"), make_zip(tmp_path / "b.zip", {"data/c": b"c", "more/d": b"d"})]
    (tmp_path / "out").mkdir()  # empty
    assert unpack(paths, tmp_path / "out")
    assert contents(tmp_path / "out") == FILES | {"data/c": b"c", "more/d": b"d"}


def test_twice_does_nothing(tmp_path):
    path = make_tar(tmp_path / "x.tar", FILES | {"beside.txt": b"not below the folder"})
    assert unpack([path], tmp_path / "out", "data")
    (tmp_path / "out" / "mine").write_text("the user's own")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert not unpack([path], tmp_path / "out", "data")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


def test_another_folder_is_left_alone(tmp_path):
    path, out = make_tar(tmp_path / "x.tar"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match=r"out is there without a\.txt of x\.tar"):
        unpack([path], out)
    assert contents(out) == {"thesis.txt": b"dear"}


def test_what_a_killed_run_left_is_no_hindrance(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half").write_text("half")
    assert unpack([make_tar(tmp_path / "x.tar")], tmp_path / "out")
    assert contents(tmp_path / "out") == FILES


def tar_member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


EVIL_TARS = {
    "traversal": (tar_member("data/../../evil"), "path"),
    "absolute": (tar_member("/tmp/evil"), "path"),  # noqa: S108 - never written
    "drive": (tar_member("C:/evil"), "path"),
    "backslash": (tar_member("data\\..\\..\\evil"), "path"),
    "symlink out": (tar_member("data/evil", tarfile.SYMTYPE, "../../elsewhere"), "link"),
    "symlink within": (tar_member("data/evil", tarfile.SYMTYPE, "a.txt"), "link"),
    "hard link": (tar_member("data/evil", tarfile.LNKTYPE, "/etc/passwd"), "link"),
    "character device": (tar_member("data/evil", tarfile.CHRTYPE), "device"),
    "block device": (tar_member("data/evil", tarfile.BLKTYPE), "device"),
    "pipe": (tar_member("data/evil", tarfile.FIFOTYPE), "device"),
    "twice": (tar_member("data/a.txt"), "twice"),
    "folder over a file": (tar_member("data/a.txt", tarfile.DIRTYPE), "twice"),
}


def zip_member(name, mode=0):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


EVIL_ZIPS = {
    "traversal": (zip_member("data/../../evil"), "path"),
    "absolute": (zip_member("/tmp/evil"), "path"),  # noqa: S108 - never written
    "drive": (zip_member("C:/evil"), "path"),
    "backslash": (zip_member("..\\evil"), "path"),
    "symlink": (zip_member("data/evil", stat.S_IFLNK | 0o777), "link"),
    "device": (zip_member("data/evil", stat.S_IFCHR | 0o666), "device"),
}


def assert_refused(path, pattern, folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=pattern) as error:
        unpack([path], folder / "out")
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("evil", EVIL_TARS)
def test_evil_tars_write_nothing(evil, tmp_path):
    member, word = EVIL_TARS[evil]
    assert_refused(make_tar(tmp_path / "x.tar", members=[member]), f"has .*{word}", tmp_path)


@pytest.mark.parametrize("evil", EVIL_ZIPS)
def test_evil_zips_write_nothing(evil, tmp_path):
    member, word = EVIL_ZIPS[evil]
    path = make_zip(tmp_path / "x.zip", infos=[(member, b"../../elsewhere")])
    assert_refused(path, f"has .*{word}", tmp_path)


def test_a_zip_under_a_password(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"a": b"x"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert_refused(path, "password", tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_do_not_go_off(kind, tmp_path):
    path = tmp_path / f"bomb.{kind}"
    files = {f"{i}": bytes(2**23) for i in range(4)}  # 32 MB of zeros
    make_zip(path, files) if kind == "zip" else make_tar(path, files, "w:gz")
    assert path.stat().st_size < 50_000
    assert_refused(path, "has more than .* MB", tmp_path)


def test_a_bomb_of_names_does_not_go_off(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 20)
    path = make_zip(tmp_path / "x.zip", {f"{i}": b"" for i in range(21)})
    assert_refused(path, "20 entries", tmp_path)


def test_a_zip_that_lies_about_sizes(tmp_path):
    """The directory says 100 bytes where there are 100 000: that many are taken, and the sum fails."""
    path = make_zip(tmp_path / "x.zip", {"a": bytes(100_000)})
    content = path.read_bytes()
    assert content.count((100_000).to_bytes(4, "little")) == 2
    path.write_bytes(content.replace((100_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    assert_refused(path, "damaged", tmp_path)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_damaged_archives_leave_nothing(kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    files = {"data/a": os.urandom(50_000), "data/b": os.urandom(50_000)}
    make_zip(path, files) if kind == "zip" else make_tar(path, files, "w:gz" if kind == "tar.gz" else "w")
    whole = path.read_bytes()
    path.write_bytes(whole[:70_000])
    assert_refused(path, "damaged", tmp_path)
    if kind == "zip":
        path.write_bytes(whole[:30_000] + b"\0" * 100 + whole[30_100:])
        assert_refused(path, "damaged", tmp_path)


def test_what_is_no_archive(tmp_path):
    path = tmp_path / "x.zip"
    for content in (b"", b"<html>404</html>"):
        path.write_bytes(content)
        assert_refused(path, "no tar or zip", tmp_path)
    assert_refused(tmp_path / "absent.zip", "absent.zip cannot be read", tmp_path)
    make_tar(path)
    with pytest.raises(UserError, match="holds no folder other"):
        unpack([path], tmp_path / "out", "other")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_found_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3002))
    assert_refused(make_tar(tmp_path / "x.tar"), "GB free", tmp_path)


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    assert_refused(make_zip(tmp_path / "x.zip"), "out cannot be written .*No space left", tmp_path)


def test_files_are_listed_with_their_sizes(tmp_path):
    for path in (make_tar(tmp_path / "x.tar"), make_zip(tmp_path / "x.zip")):
        listed = {str(file): size for file, size in list_files(path).items()}
        assert listed == {name: len(content) for name, content in FILES.items()}
