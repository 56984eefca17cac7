"""Downloads from a server on this machine: whole and right, or not there at all."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from tests.data.samples import cifar_files, write_tar, write_tree

from prunus.data import download as download_module
from prunus.data import load_data
from prunus.data.download import OFFICIAL, Official, download
from prunus.errors import DataError


@dataclass
class Server:
    """What is served: file name → content; `cut` leaves out the end of every answer."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: int = 0
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append(self.path)
            content = served.files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - served.cut])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        served.url = f"http://127.0.0.1:{http.server_address[1]}/"
        yield served
        http.shutdown()
        thread.join()


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server) -> bytes:
    """A tiny archive in the place of the official CIFAR-10, served; the working folder is empty."""
    files, _, _ = cifar_files("cifar10-binary")
    content = write_tar(tmp_path / "made.tar.gz", files, "gz").read_bytes()
    binary = Official("cifar-10-binary.tar.gz", hashlib.md5(content).hexdigest(), "cifar-10-batches-bin")
    monkeypatch.setitem(OFFICIAL, "cifar10", (binary, *OFFICIAL["cifar10"][1:]))
    monkeypatch.setattr(download_module, "BASE_URL", server.url)
    server.files["cifar-10-binary.tar.gz"] = content
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return content


def test_cifar_10_is_downloaded_once(official: bytes, server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        data = load_data("cifar10", cache_dir=tmp_path / "cache")
    assert server.requests == ["/cifar-10-binary.tar.gz"]
    assert (tmp_path / "cache" / "cifar-10-binary.tar.gz").read_bytes() == official
    assert np.array_equal(data.train_images.numpy(), cifar_files("cifar10-binary")[1])


@pytest.mark.parametrize("unpacked", [True, False])
def test_an_archive_in_the_working_folder_is_used(
    unpacked: bool, official: bytes, server: Server, tmp_path: Path
) -> None:
    if unpacked:
        write_tree(tmp_path / "here", cifar_files("cifar10-binary")[0])
    else:
        (tmp_path / "here" / "cifar-10-binary.tar.gz").write_bytes(official)
    assert load_data("cifar10", cache_dir=tmp_path / "cache").name == "CIFAR-10"
    assert server.requests == []


def test_a_wrong_checksum_is_refused_and_leaves_nothing(official: bytes, server: Server, tmp_path: Path) -> None:
    server.files["cifar-10-binary.tar.gz"] = official[:-1] + b"x"
    with pytest.raises(
        DataError, match=r"cifar-10-binary\.tar\.gz is not the official file: MD5 [0-9a-f]{32}, expected"
    ):
        load_data("cifar10", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_answer_cut_short_is_refused_and_leaves_nothing(official: bytes, server: Server, tmp_path: Path) -> None:
    server.cut = 100
    with pytest.raises(DataError, match="type the same again"):
        load_data("cifar10", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_network_the_error_says_what_to_type(official: bytes, server: Server, tmp_path: Path) -> None:
    server.files.clear()
    with pytest.raises(
        DataError, match=r"could not be downloaded \(HTTP Error 404.*--data path/to/cifar-10-binary\.tar\.gz"
    ):
        load_data("cifar10", cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match="could not be downloaded"):
        download("http://127.0.0.1:9/x", tmp_path / "x", "0", progress=False)
    assert not (tmp_path / "x").exists()


def test_more_than_any_archive_has_is_not_stored(
    official: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "_MAX_BYTES", 1000)
    with pytest.raises(DataError, match="more than 1000 bytes"):
        load_data("cifar10", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wrong_archive_in_the_cache_is_named_and_kept(official: bytes, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    path.write_bytes(official[:-7])
    with pytest.raises(DataError, match=r"cache/cifar-10-binary\.tar\.gz is not the official archive: .* Delete it"):
        load_data("cifar10", cache_dir=tmp_path / "cache")
    assert path.exists()
    assert server.requests == []


def test_the_checksums_are_the_published_ones() -> None:
    assert {official.file: official.md5 for pair in OFFICIAL.values() for official in pair} == {
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    }
