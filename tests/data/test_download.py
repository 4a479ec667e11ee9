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
    return path, download(source, path, attempts, wait=0.01, **more)


def test_a_file_arrives_with_its_checksum(source, tmp_path):
    told = []
    path, checksum = fetch(source, tmp_path, tell=lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert checksum == MD5
    assert told == sorted(told)
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [file.name for file in path.parent.iterdir()] == ["file.zip"]


def test_without_anything_known_the_hash_is_sha256(source, tmp_path):
    assert fetch(Source(source.url), tmp_path)[1] == SHA256


def test_a_file_that_is_there_is_not_fetched(server, source, tmp_path):
    fetch(source, tmp_path)
    assert fetch(source, tmp_path)[1] == MD5
    assert len(server.ranges) == 1


def test_broken_off_downloads_go_on_where_they_were(server, source, tmp_path):
    server.faults = ["cut 300000", "cut 100000"]
    path, _ = fetch(source, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=400000-"]


def test_the_next_run_goes_on_from_the_last(server, source, tmp_path):
    server.faults = ["cut 1000"]
    with pytest.raises(UserError, match=r"failed 1 times, last: it broke off at 1000 of 700000 bytes; 1000 "):
        fetch(source, tmp_path, attempts=1)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.zip.partial"]
    path, _ = fetch(source, tmp_path, attempts=1)
    assert path.read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=1000-"


@pytest.mark.parametrize("faults", [["no ranges"], ["shifted"]])
def test_a_server_without_sound_ranges_sends_all_of_it_again(faults, server, source, tmp_path):
    server.faults = ["cut 1000", *faults, "no ranges"]
    path, _ = fetch(source, tmp_path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("state", [429, 500, 503])
def test_a_busy_server_is_asked_again(state, server, source, tmp_path):
    server.faults = [state, state]
    assert fetch(source, tmp_path)[1] == MD5


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
        fetch(Source(url), tmp_path, attempts=2)
    assert "\n" not in str(error.value)


def test_wrong_bytes_are_deleted_and_said(server, source, tmp_path):
    server.faults = ["wrong"]
    with pytest.raises(UserError, match=rf"sent other bytes than {MD5}"):
        fetch(source, tmp_path)
    assert not list((tmp_path / "new").iterdir())
    assert fetch(source, tmp_path)[0].read_bytes() == CONTENT


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


def test_too_long_a_length_is_corrected_by_the_next_answer(server, source, tmp_path):
    server.faults = ["longer"]
    assert fetch(Source(source.url, checksum=MD5), tmp_path)[0].read_bytes() == CONTENT
    assert server.ranges[1] == "bytes=700000-"


def test_too_short_a_length_is_found_by_the_checksum(server, source, tmp_path):
    server.faults = ["shorter"]
    with pytest.raises(UserError, match="sent other bytes"):
        fetch(Source(source.url, checksum=MD5), tmp_path)


def test_an_answer_without_length_is_checked_against_the_known_one(server, source, tmp_path):
    server.faults = ["no length"]
    assert fetch(source, tmp_path)[1] == MD5
    server.files["more.zip"] = CONTENT + b"more"
    server.faults = ["no length"] * 3
    with pytest.raises(UserError, match="it sent more than 700000 bytes"):
        fetch(Source(f"{server.url}/more.zip", len(CONTENT), MD5), tmp_path)


@pytest.mark.parametrize("size", [None, 700_000])
def test_more_bytes_than_the_file_has_are_dropped(size, source, tmp_path):
    partial = tmp_path / "new" / "file.zip.partial"
    partial.parent.mkdir()
    partial.write_bytes(CONTENT + b"of an older, longer file")
    assert fetch(source._replace(size=size), tmp_path)[0].read_bytes() == CONTENT


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
        download(Source(url), tmp_path / "file.zip")


def test_verify_names_what_differs(tmp_path):
    path = tmp_path / "file.zip"
    path.write_bytes(CONTENT)
    assert verify(path, Source("", len(CONTENT), SHA256)) == SHA256
    with pytest.raises(UserError, match="has 700000 bytes, need 7"):
        verify(path, Source("", 7))
    with pytest.raises(UserError, match=rf"has {MD5}, need md5:0"):
        verify(path, Source("", None, "md5:0"))
    with pytest.raises(UserError, match="need md5:… or sha256:…"):
        verify(path, Source("", None, "crc:0"))
    with pytest.raises(UserError, match="cannot be read"):
        verify(tmp_path / "absent", Source(""))
