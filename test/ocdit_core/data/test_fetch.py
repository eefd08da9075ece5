"""`ocdit fetch` against a hub on this machine."""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest


def archive(files: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as content:
        for name, text in files.items():
            content.writestr(name, text)
    return data.getvalue()


FILES = {
    "toy_base.zip": archive({"toy/camera.json": "{}", "toy/test_targets_bop19.json": "[]"}),
    "toy_models.zip": archive({"models/obj_000001.ply": "ply", "models/models_info.json": "{}"}),
    "toy_test_bop19.zip": archive({"test/000001/scene_gt.json": "{}"}),
    "toy_broken.zip": b"no archive",
}


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub: the list of files, and their contents.

    The connection breaks in the middle of the first answer for `breaking`.
    """

    breaking = ""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = urlsplit(self.path).path
        name, headers = path.rsplit("/", 1)[1], {"X-Repo-Commit": "0" * 40}
        if path.startswith("/api/datasets/bop-benchmark/toy/tree/"):
            data = json.dumps(
                [{"type": "file", "path": n, "size": len(d), "oid": n} for n, d in FILES.items()]
            ).encode()
            headers["Content-Type"] = "application/json"
        elif path.startswith("/datasets/bop-benchmark/toy/resolve/") and name in FILES:
            data = FILES[name]
            headers["ETag"] = f'"{hashlib.sha1(data).hexdigest()}"'
        else:
            data, headers["X-Error-Code"] = b"", "RepoNotFound"
        self.send_response(404 if "X-Error-Code" in headers else 200)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if body and name == Hub.breaking:
            Hub.breaking = ""
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        elif body:
            self.wfile.write(data)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(endpoint, folder, *arguments, offline="0"):
    """Run the command in a process of its own: the hub's address is read at the import."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": offline}
    command = [sys.executable, "-m", "ocdit_core.cli", "fetch", *arguments, "--out", str(folder / "bop")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_dataset_is_downloaded_and_what_is_there_stays(hub, tmp_path):
    (tmp_path / "bop" / "toy").mkdir(parents=True)
    (tmp_path / "bop" / "toy" / "camera.json").write_text("mine")
    done = fetch(hub, tmp_path, "toy")
    assert done.returncode == 0, done.stderr
    assert "added test_targets_bop19.json, models, test" in done.stdout
    found = {str(p.relative_to(tmp_path / "bop")) for p in (tmp_path / "bop").rglob("*") if p.is_file()}
    assert found == {
        "toy/camera.json", "toy/test_targets_bop19.json", "toy/models/obj_000001.ply", "toy/models/models_info.json",
        "toy/test/000001/scene_gt.json",
    }  # fmt: skip
    assert (tmp_path / "bop" / "toy" / "camera.json").read_text() == "mine"
    assert "camera.json: is there already" in done.stderr


def test_a_download_that_breaks_is_completed(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "breaking", "toy_models.zip")
    done = fetch(hub, tmp_path, "toy", "--parts", "models")
    assert done.returncode == 0, done.stderr
    assert not Hub.breaking
    assert (tmp_path / "bop" / "toy" / "models" / "obj_000001.ply").read_text() == "ply"


def test_each_mistake_is_one_line(hub, tmp_path):
    cases = [
        (hub, ["nothing"], "bop-benchmark/nothing: the hub has no such dataset"),
        (hub, ["toy", "--parts", "train"], "has no part train; it has base, broken, models, test_bop19"),
        (hub, ["toy", "--parts", "broken"], "toy_broken.zip: damaged, or one of several parts"),
        (hub, ["toy"], f"the hub {hub} cannot be reached (OfflineModeIsEnabled)"),
    ]
    for endpoint, arguments, message in cases:
        done = fetch(endpoint, tmp_path, *arguments, offline=str(int("reached" in message)))
        assert done.returncode == 2, message
        assert message in done.stderr
        assert done.stderr.strip().count("\n") == 0, done.stderr
    assert not list((tmp_path / "bop").rglob("*.json"))
