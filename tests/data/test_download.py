"""Downloads from a server on localhost that breaks off, lies, sends wrong bytes or does not know ranges."""

import hashlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from file_server import FileServer
from wsss_afa.data import download as module
from wsss_afa.data.download import Source, download, require_space, verify
from wsss_afa.errors import UserError

CONTENT = np.random.default_rng(0).bytes(700_000)
MD5 = f"md5:{hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with FileServer() as running:
        running.files["file.zip"] = CONTENT
        yield running


@pytest.fixture
def source(server):
    return Source(f"{server.url}/file.zip", len(CONTENT), MD5)


def fetch(source, folder, attempts=3, **more):
    path = folder / "new" / source.name
    download(source, path, attempts, wait=0.01, **more)
    return path


def test_a_file_arrives_with_its_checksum(source, tmp_path):
    told = []
    path = fetch(source, tmp_path, tell=told.append)
    assert path.read_bytes() == CONTENT
    assert told == sorted(told)
    assert told[-1] == len(CONTENT)
    assert [file.name for file in path.parent.iterdir()] == ["file.zip"]


def test_a_file_that_is_there_is_not_fetched(server, source, tmp_path):
    fetch(source, tmp_path)
    assert fetch(source, tmp_path).read_bytes() == CONTENT
    assert len(server.ranges) == 1


def test_broken_off_downloads_go_on_where_they_were(server, source, tmp_path):
    server.faults = ["cut 300000", "cut 100000"]
    path = fetch(source, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=400000-"]


def test_the_next_run_goes_on_from_the_last(server, source, tmp_path):
    server.faults = ["cut 1000"]
    with pytest.raises(UserError, match=r"failed 1 times, last: it broke off at 1000 of 700000 bytes; 1000 "):
        fetch(source, tmp_path, attempts=1)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.zip.partial"]
    path = fetch(source, tmp_path, attempts=1)
    assert path.read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=1000-"


@pytest.mark.parametrize("faults", [["no ranges"], ["shifted"]])
def test_a_server_without_sound_ranges_sends_all_of_it_again(faults, server, source, tmp_path):
    server.faults = ["cut 1000", *faults, "no ranges"]
    path = fetch(source, tmp_path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("state", [429, 500, 503])
def test_a_busy_server_is_asked_again(state, server, source, tmp_path):
    server.faults = [state, state]
    assert fetch(source, tmp_path).read_bytes() == CONTENT


def test_requests_are_bounded(server, source, tmp_path):
    server.faults = [503] * 9
    with pytest.raises(UserError, match="failed 3 times, last: it answered 503"):
        fetch(source, tmp_path)
    assert len(server.ranges) == 3


def test_a_silent_server_is_given_up(server, source, tmp_path):
    server.faults = ["silent"]
    with pytest.raises(UserError, match="timed out"):
        fetch(source, tmp_path, attempts=1, timeout=0.2)


def test_waits_are_doubled_up_to_a_bound(server, source, tmp_path, monkeypatch):
    server.faults = [503] * 7
    waits = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waits.append))
    with pytest.raises(UserError):
        download(source, tmp_path / "file.zip", attempts=7, wait=2.0)
    assert waits == [2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("state", [403, 404])
def test_an_absent_file_is_not_asked_for_again(state, server, source, tmp_path):
    server.faults = [state]
    with pytest.raises(UserError, match=rf"file.zip answered {state} .*archives"):
        fetch(source, tmp_path)
    assert len(server.ranges) == 1


def test_no_server_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with FileServer() as gone:
        url = f"{gone.url}/file.zip"
    with pytest.raises(UserError, match="refused") as error:
        fetch(Source(url, 1, MD5), tmp_path, attempts=2)
    assert "\n" not in str(error.value)


def test_wrong_bytes_are_deleted_and_said(server, source, tmp_path):
    server.faults = ["wrong"]
    with pytest.raises(UserError, match=rf"sent other bytes than {MD5}"):
        fetch(source, tmp_path)
    assert not list((tmp_path / "new").iterdir())
    assert fetch(source, tmp_path).read_bytes() == CONTENT


def test_wrong_bytes_in_what_was_kept_are_found(source, tmp_path):
    partial = tmp_path / "new" / "file.zip.partial"
    partial.parent.mkdir()
    partial.write_bytes(b"x" * 5000)
    with pytest.raises(UserError, match="sent other bytes"):
        fetch(source, tmp_path)
    assert not partial.exists()


@pytest.mark.parametrize("lie", ["longer", "shorter"])
def test_a_length_other_than_the_known_one_is_another_file(lie, server, source, tmp_path):
    server.faults = [lie]
    with pytest.raises(UserError, match=r"offers 700050|offers 699950"):
        fetch(source, tmp_path)
    assert not list((tmp_path / "new").iterdir())


def test_an_answer_without_length_is_checked_against_the_known_one(server, source, tmp_path):
    server.faults = ["no length"]
    assert fetch(source, tmp_path).read_bytes() == CONTENT
    server.files["more.zip"] = CONTENT + b"more"
    server.faults = ["no length"] * 3
    with pytest.raises(UserError, match="it sent more than 700000 bytes"):
        fetch(Source(f"{server.url}/more.zip", len(CONTENT), MD5), tmp_path)


def test_more_bytes_than_the_file_has_are_dropped(source, tmp_path):
    partial = tmp_path / "new" / "file.zip.partial"
    partial.parent.mkdir()
    partial.write_bytes(CONTENT + b"of an older, longer file")
    assert fetch(source, tmp_path).read_bytes() == CONTENT


def test_a_full_disk_is_found_before_writing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"GB free, need"):
        fetch(source, tmp_path)
    assert not list((tmp_path / "new").iterdir())
    require_space(tmp_path / "not" / "there", 1000)


def test_a_place_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "new").write_text("a file, no folder")
    with pytest.raises(UserError, match=r"new/file.zip cannot be written"):
        fetch(source, tmp_path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/file.zip", "http://127.0.0.1/"])
def test_only_files_on_the_web(url, tmp_path):
    with pytest.raises(UserError, match="no address of a file"):
        download(Source(url, 1, MD5), tmp_path / "file.zip")


def test_verify_names_what_differs(tmp_path):
    path = tmp_path / "file.zip"
    path.write_bytes(CONTENT)
    verify(path, source := Source("", len(CONTENT), SHA256))
    with pytest.raises(UserError, match="has 700000 bytes, need 7"):
        verify(path, source._replace(size=7))
    with pytest.raises(UserError, match=rf"has {MD5}, need md5:0"):
        verify(path, source._replace(checksum="md5:0"))
    with pytest.raises(UserError, match="need md5:… or sha256:…"):
        verify(path, source._replace(checksum="crc:0"))
    with pytest.raises(UserError, match="cannot be read"):
        verify(tmp_path / "absent", source)
