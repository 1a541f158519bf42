"""``tta-bench data get`` against a server on this machine: breaks, wrong files, unsafe archives, two at once."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import multiprocessing
import pathlib
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator

import pytest

from tta_bench.commands import data_get
from tta_bench.data import download, published_sets
from tta_bench.data.published_sets import SETS, Download, Remote
from tta_bench.errors import UsageError
from tta_bench.files import locked

DOCS = pathlib.Path(__file__).parent.parent / "docs" / "data.md"


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``, each by its path.

    Attributes:
        ranges: whether it knows them.
        cuts: after how many bytes each of the next answers breaks off.
        asked: (path, Range header) of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges, self.cuts = True, list[int]()
        self.asked: list[tuple[str, str | None]] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if asked and self.server.ranges else 200)
        if asked and self.server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def tar(**members: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


IMAGES = tar(**{f"Digits/{digit}/image.png": f"{digit}" * 3000 for digit in range(9)})


def offered(server: Server, name: str, content: bytes, expected: bytes | None = None) -> Remote:
    """A file on the server; ``expected`` is what it should have been."""
    server.files[f"/{name}"], right = content, content if expected is None else expected
    url = f"http://127.0.0.1:{server.server_address[1]}/{name}"
    return Remote(name, url, len(right), f"sha256:{hashlib.sha256(right).hexdigest()}", ())


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make ``digits`` a published set of one archive, or of other files."""

    def make(*files: Remote, folder: str = ".") -> None:
        line, root = "data: {{kind: folder, root: {root}}}", "Digits" if folder == "." else folder
        monkeypatch.setitem(SETS, "digits", Download("Digits", "MIT", "page", line, "DIGITS", root, "", files, folder))

    make(offered(server, "digits.tar.gz", IMAGES))
    return make


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    """Path to content of all files but the command's own."""
    files = [path for path in folder.rglob("*") if path.is_file() and data_get.WORK not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


UNPACKED = {f"Digits/{digit}/image.png": f"{digit}".encode() * 3000 for digit in range(9)}


# -- what is fetched -----------------------------------------------------------------------------------------------------


def test_a_set_is_fetched_once(
    server: Server, publish: object, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data_get.get("digits", str(tmp_path / "sets")) == 0
    assert tree(tmp_path / "sets") == UNPACKED
    place = tmp_path / "sets" / "Digits"
    assert capsys.readouterr().out == f'data: {{kind: folder, root: "{place}"}}\nexport DIGITS={place}\n'
    left = sorted(path.name for path in (tmp_path / "sets" / data_get.WORK / "digits").iterdir())
    assert left == ["lock", "state.json"]
    assert data_get.get("digits", str(tmp_path / "sets")) == 0
    assert server.asked == [("/digits.tar.gz", None)]


def test_several_files_go_into_a_folder_of_their_own(
    server: Server, publish: Callable[..., None], tmp_path: pathlib.Path
) -> None:
    publish(
        offered(server, "a.tar", tar(fog="1")),
        offered(server, "b.tar", tar(snow="22")),
        offered(server, "labels.npy", b"333"),
        folder="All",
    )
    assert data_get.get("digits", str(tmp_path)) == 0
    assert tree(tmp_path) == {"All/fog": b"1", "All/snow": b"22", "All/labels.npy": b"333"}


def test_an_archive_that_the_user_brought_is_verified_used_and_kept(
    server: Server, publish: object, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "digits.tar.gz").write_bytes(IMAGES[:-1])
    with pytest.raises(UsageError, match="checksum"):
        data_get.get("digits", str(tmp_path))
    (tmp_path / "digits.tar.gz").write_bytes(IMAGES)
    assert data_get.get("digits", str(tmp_path)) == 0
    assert tree(tmp_path) == UNPACKED | {"digits.tar.gz": IMAGES}
    assert server.asked == []


# -- breaks --------------------------------------------------------------------------------------------------------------


def test_a_cut_connection_goes_on_where_it_broke(server: Server, publish: object, tmp_path: pathlib.Path) -> None:
    server.cuts = [50, 30]
    assert data_get.get("digits", str(tmp_path)) == 0
    assert tree(tmp_path) == UNPACKED
    assert [asked for _, asked in server.asked] == [None, "bytes=50-", "bytes=80-"]


def test_a_server_without_ranges_sends_all_again(server: Server, publish: object, tmp_path: pathlib.Path) -> None:
    server.ranges, server.cuts = False, [50]
    assert data_get.get("digits", str(tmp_path)) == 0
    assert tree(tmp_path) == UNPACKED


def test_a_dead_connection_stops_and_the_part_is_kept(
    server: Server, publish: object, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.cuts = [50, *[0] * download.TRIES]
    assert data_get.get("digits", str(tmp_path)) == 3
    assert "digits.tar.gz cannot be fetched" in capsys.readouterr().err
    assert tree(tmp_path) == {}
    assert data_get.get("digits", str(tmp_path)) == 0
    assert server.asked[-1] == ("/digits.tar.gz", "bytes=50-")
    assert tree(tmp_path) == UNPACKED


@pytest.mark.parametrize("where", ["fetch", "unpack"])
def test_ctrl_c_keeps_what_was_fetched(
    where: str, server: Server, publish: object, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            *((data_get._Fetching, "_progress") if where == "fetch" else (tarfile.TarFile, "chown")), interrupt
        )
        patch.setattr(download, "_BLOCK", 100)
        with pytest.raises(KeyboardInterrupt):
            data_get.get("digits", str(tmp_path))
    assert tree(tmp_path) == {}
    assert data_get.get("digits", str(tmp_path)) == 0
    assert tree(tmp_path) == UNPACKED
    assert [asked for _, asked in server.asked] == ([None, "bytes=100-"] if where == "fetch" else [None])


def test_a_break_while_the_folders_are_moved_into_place_is_mended(
    server: Server, publish: Callable[..., None], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(offered(server, "all.tar", tar(fog="1", snow="22", rain="333")), folder="All")
    replace = pathlib.Path.replace

    def broken(path: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        if path.name == "rain":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", broken)
        with pytest.raises(KeyboardInterrupt):
            data_get.get("digits", str(tmp_path))
    assert tree(tmp_path) == {"All/fog": b"1"}
    assert data_get.get("digits", str(tmp_path)) == 0
    assert tree(tmp_path) == {"All/fog": b"1", "All/snow": b"22", "All/rain": b"333"}
    assert len(server.asked) == 1


# -- what is refused -------------------------------------------------------------------------------------------------------


def test_a_wrong_file_is_kept_aside_and_never_used(
    server: Server, publish: Callable[..., None], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tar(**{"Digits/0/image.png": "not it"})
    publish(offered(server, "digits.tar.gz", wrong, expected=wrong[:-4] + b"good"))
    assert data_get.get("digits", str(tmp_path)) == 3
    aside = tmp_path / data_get.WORK / "digits" / "digits.tar.gz.wrong"
    text = capsys.readouterr().err
    assert f"{aside}: digits.tar.gz has the SHA256 checksum {hashlib.sha256(wrong).hexdigest()}" in text
    assert aside.read_bytes() == wrong
    assert tree(tmp_path) == {}
    server.files["/digits.tar.gz"] = wrong[:-4] + b"good"
    data_get.get("digits", str(tmp_path))
    assert server.asked[-1] == ("/digits.tar.gz", None)


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "the server refuses digits.tar.gz: HTTP Error 404"), (b"<html>log in", "the server sends 12 bytes as")],
)
def test_another_file_does_not_touch_the_part(
    content: bytes | None, text: str, server: Server, publish: object, tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    server.cuts = [50, *[0] * download.TRIES]
    data_get.get("digits", str(tmp_path))
    del server.files["/digits.tar.gz"]
    server.ranges = False
    if content is not None:
        server.files["/digits.tar.gz"] = content
    capsys.readouterr()
    requests = len(server.asked)
    assert data_get.get("digits", str(tmp_path)) == 3
    assert text in capsys.readouterr().err
    assert len(server.asked) == requests + 1
    assert (tmp_path / data_get.WORK / "digits" / "digits.tar.gz.part").read_bytes() == IMAGES[:50]


@pytest.mark.parametrize("name", ["../outside", "Digits/../../../../../outside"])
def test_no_member_of_an_archive_leaves_the_folder(
    name: str, server: Server, publish: Callable[..., None], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(offered(server, "digits.tar.gz", tar(**{"Digits/image.png": "1", name: "2"})))
    code = data_get.get("digits", str(tmp_path / "sets"))
    assert code == 3
    assert "is outside the destination" in capsys.readouterr().err
    assert tree(tmp_path) == {}
    assert not [path for path in tmp_path.rglob("outside") if "sets" not in path.parts]


def test_what_the_user_has_is_neither_used_nor_replaced(
    server: Server, publish: object, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "Digits").mkdir()
    with pytest.raises(UsageError, match="is there already, and not known to be complete"):
        data_get.get("digits", str(tmp_path))
    assert server.asked == []


def test_a_folder_that_was_removed_is_fetched_again(server: Server, publish: object, tmp_path: pathlib.Path) -> None:
    data_get.get("digits", str(tmp_path))
    shutil.rmtree(tmp_path / "Digits")
    assert data_get.get("digits", str(tmp_path)) == 0
    assert tree(tmp_path) == UNPACKED


def test_a_disk_that_is_too_small_is_refused_first(
    server: Server, publish: object, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = len(IMAGES) * 2

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(UsageError, match=r"Digits needs 0.0 GiB"):
        data_get.get("digits", str(tmp_path))
    assert server.asked == []


def _hold(folder: str, ready: object, release: object) -> None:
    with locked(pathlib.Path(folder), "the download", "wait"):
        ready.set()  # type: ignore[attr-defined]
        release.wait()  # type: ignore[attr-defined]


def test_a_second_process_is_told_who_is_at_work(server: Server, publish: object, tmp_path: pathlib.Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, release = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(str(tmp_path / data_get.WORK / "digits"), ready, release))
    other.start()
    ready.wait()
    try:
        with pytest.raises(UsageError, match=f"the download is in use by process {other.pid} on "):
            data_get.get("digits", str(tmp_path))
    finally:
        release.set()
        other.join()
    assert data_get.get("digits", str(tmp_path)) == 0
    assert tree(tmp_path) == UNPACKED


def test_names() -> None:
    with pytest.raises(UsageError, match="did you mean 'imagenet_r'"):
        data_get.get("imagenet-r", "sets")
    with pytest.raises(UsageError, match="log in at https://image-net.org") as refused:
        data_get.get("imagenet", "/big sets")
    assert "DIR" not in str(refused.value)
    assert "export IMAGENET_VAL='/big sets/val'" in str(refused.value)


# -- the table -------------------------------------------------------------------------------------------------------------


def test_every_address_has_a_checksum_that_two_places_list() -> None:
    remotes = [remote for published in SETS.values() for remote in published.files]
    assert len(remotes) == 18
    for remote in remotes:
        assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", remote.checksum)
        assert len({place.partition(":")[0] for place in remote.seen}) >= 2
        assert remote.url.startswith("https://")
        assert remote.url.endswith(remote.name)
    for name, published in SETS.items():
        assert bool(published.files) != bool(published.by_hand), name


def test_the_table_of_the_manual() -> None:
    assert published_sets.markdown() in DOCS.read_text(encoding="utf-8")


def test_variables_are_those_of_shipped_suites() -> None:
    suites = "".join(path.read_text(encoding="utf-8") for path in (DOCS.parent.parent / "suites").glob("*.yaml"))
    assert {p.variable for p in SETS.values() if p.variable} <= set(re.findall(r"\$\{(\w+)\}", suites))
    lines = [line for published in SETS.values() for line in data_get.suite_lines(published, pathlib.Path("/x"))]
    assert 'data: {kind: cifar_c, root: "/x/CIFAR-100-C", classes: 100}' in lines
    assert json.dumps("/x/sketch") in " ".join(lines)
