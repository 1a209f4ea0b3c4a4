"""A served model over real HTTP: right under load, firm with what is wrong with a body, alive after
deaths.
"""

import concurrent.futures
import contextlib
import http.client
import io
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from raysft.backends import serving
from raysft.backends.serving import serve_model
from raysft.deploy.serve import is_loopback
from raysft.deploy.settings import Settings
from raysft.errors import ResourceError, UserError
from raysft.job.plan import Node
from raysft.results.model import ModelCard, deliver
from raysft.results.predict import Classifier
from raysft.train.smallnet import small_cnn
from tests.conftest import MARK, assert_nothing_is_left, living

RAYSFT = str(Path(sys.executable).parent / "raysft")
CLASSES = ("ant", "bee", "cow", "dog", "eel")
QUEUE, CLIENTS, REQUESTS, REPLICAS = 24, 16, 1000, 2
MB = 1024 * 1024


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A delivered model, not trained, but sure of itself: classes differ by more than what rounding
    does.
    """
    root = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    net = small_cnn(len(CLASSES))
    net[-1].weight.data *= 20
    (root / "checkpoint").mkdir()
    save_file(net.state_dict(), root / "checkpoint/model.safetensors")
    card = ModelCard(
        "raysft.train.smallnet:small_cnn",
        CLASSES,
        32,
        32,
        (0.5,) * 3,
        (0.25,) * 3,
        {"test_accuracy": 0.2},
        {},
    )
    deliver(root / "model", root / "checkpoint", card)
    return root / "model"


@dataclass
class Sample:
    """An image file, and what `raysft predict` says about it."""

    content: bytes
    ranking: list[tuple[str, float]]


@pytest.fixture(scope="module")
def samples(model, tmp_path_factory) -> list[Sample]:
    """Photos of several formats, sizes and orientations."""
    folder, rng = tmp_path_factory.mktemp("samples"), np.random.default_rng(0)
    paths = []
    for i, (suffix, size) in enumerate(
        itertools.product(("png", "jpg", "webp", "gif"), ((32, 32), (40, 56), (9, 5)))
    ):
        image = Image.fromarray(
            (rng.integers(0, 200, 3) + rng.integers(0, 56, (*size, 3))).astype(np.uint8)
        )
        exif = image.getexif()
        exif[0x0112] = 6 if suffix == "jpg" else 1
        paths.append(str(folder / f"{i}.{suffix}"))
        image.save(paths[-1], **({"exif": exif} if suffix == "jpg" else {}))
    found = Classifier(model).predict(paths)
    assert len({round(prediction.classes[0][1], 3) for prediction in found}) == len(
        found
    )  # none is taken for another
    return [
        Sample(Path(path).read_bytes(), list(prediction.classes))
        for path, prediction in zip(paths, found, strict=True)
    ]


@dataclass
class Server:
    """A running `raysft serve`."""

    process: subprocess.Popen
    port: int
    begun: float
    mark: str
    lines: list[str] = field(default_factory=list)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)

    def post(
        self, body: bytes, kind: str = "application/octet-stream", query: str = ""
    ) -> tuple[int, dict, dict]:
        """(status, JSON, headers) of one request on a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("POST", f"/predict{query}", body, {"content-type": kind})
            return read(connection.getresponse())

    def get(self, path: str) -> tuple[int, str]:
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0

    def health(self) -> tuple[int, dict]:
        status, text = self.get("/health")
        return status, json.loads(text)

    def replicas(self) -> list[psutil.Process]:
        return [
            process
            for process in living()
            if process.create_time() >= self.begun
            and any("ServeReplica" in word for word in command(process))
        ]

    def wait_until_whole(self) -> None:
        until(
            lambda: (
                len(self.replicas()) == REPLICAS
                and self.health()
                == (200, {"status": "ready", "replicas": REPLICAS, "wanted": REPLICAS})
            )
        )


def command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def read(response: http.client.HTTPResponse) -> tuple[int, dict, dict]:
    return (
        response.status,
        json.loads(response.read()),
        {k.lower(): v for k, v in response.getheaders()},
    )


def until(reached, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(module_without_ray, model, tmp_path_factory):
    mark, begun = f"serve-{os.getpid()}", time.time()
    process = subprocess.Popen(
        [
            RAYSFT,
            "serve",
            str(model),
            "--port",
            "0",
            "--replicas",
            str(REPLICAS),
            "--queue",
            str(QUEUE),
        ],
        env=os.environ | {MARK: mark},
        text=True,
        stdout=subprocess.PIPE,
        cwd=tmp_path_factory.mktemp("here"),
    )
    assert process.stdout is not None
    try:
        lines = list(itertools.takewhile(lambda line: "curl" not in line, process.stdout))
        found = re.search(r"http://127\.0\.0\.1:(\d+)", "".join(lines))
        assert found
        yield Server(process, int(found[1]), begun, mark, lines)
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def whole(server) -> Server:
    """The server with all its replicas, whatever the test before has done to them."""
    server.wait_until_whole()
    return server


def assert_same(prediction: dict, ranking: list[tuple[str, float]]) -> None:
    assert [top["class"] for top in prediction["top"]] == [name for name, _ in ranking]
    assert [top["probability"] for top in prediction["top"]] == pytest.approx(
        [share for _, share in ranking], abs=1e-6
    )
    assert (prediction["class"], prediction["probability"]) == (
        prediction["top"][0]["class"],
        prediction["top"][0]["probability"],
    )


def form(files: list[bytes], name: str = "images") -> tuple[bytes, str]:
    """(body, content type) of a form with files."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="%s"; filename="%d"\r\n\r\n%s\r\n'
        % (name.encode(), i, file)
        for i, file in enumerate(files)
    ]
    return b"".join(parts) + b"--x--\r\n", "multipart/form-data; boundary=x"


def test_concurrent_requests_are_answered_like_predict(whole, samples):
    numbers, before = iter(range(REQUESTS)), whole.metric('raysft_requests_total{status="200"}')
    batches = whole.metric("raysft_batch_images_count")
    answers: list[tuple[int, int, dict]] = []

    def client() -> None:
        with contextlib.closing(whole.connect()) as connection:
            for number in numbers:
                connection.request(
                    "POST",
                    "/predict",
                    samples[number % len(samples)].content,
                    {"content-type": "application/octet-stream"},
                )
                status, document, _ = read(connection.getresponse())
                answers.append((number, status, document))

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(client) for _ in range(CLIENTS)]:
            done.result()
    assert sorted(number for number, *_ in answers) == list(range(REQUESTS))
    assert {status for _, status, _ in answers} == {200}
    for number, _, document in answers:
        assert_same(document["predictions"][0], samples[number % len(samples)].ranking)
    assert whole.metric('raysft_requests_total{status="200"}') - before == REQUESTS
    assert (
        whole.metric("raysft_batch_images_count") - batches < REQUESTS / 2
    )  # they went through the network together


def test_form_files_are_answered_in_order(whole, samples):
    chosen = [samples[i % len(samples)] for i in range(40)]  # more than a batch
    status, document, _ = whole.post(*form([sample.content for sample in chosen]))
    assert status == 200
    assert len(document["predictions"]) == len(chosen)
    for prediction, sample in zip(document["predictions"], chosen, strict=True):
        assert_same(prediction, sample.ranking)


@pytest.mark.parametrize(("asked", "named"), [(1, 1), (2, 2), (5, 5), (99, 5)])
def test_as_many_classes_as_are_asked_for(whole, samples, asked, named):
    _, document, _ = whole.post(samples[0].content, query=f"?top={asked}")
    assert len(document["predictions"][0]["top"]) == named
    assert sum(top["probability"] for top in document["predictions"][0]["top"]) <= 1 + 1e-6


def png(width: int, height: int, mode: str = "1") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return file.getvalue()


BAD = {
    "truncated": lambda good: (
        good[: len(good) // 2],
        "image/png",
        "",
        422,
        "image: is not a readable image",
    ),
    "not an image": lambda good: (
        b"%PDF-1.7 " * 99,
        "image/png",
        "",
        422,
        "image: is not a readable image",
    ),
    "empty": lambda good: (b"", "image/png", "", 422, "image: is empty"),
    "100 megapixels": lambda good: (
        png(10_000, 10_000),
        "image/png",
        "",
        413,
        "has 100.0 megapixels, the limit is 50",
    ),
    "400 megapixels": lambda good: (
        png(20_000, 20_000),
        "image/png",
        "",
        413,
        "has 400.0 megapixels, the limit is 50",
    ),
    "wrong type": lambda good: (
        b"{}",
        "application/json",
        "",
        415,
        "application/json is not one of an image",
    ),
    "curl's own type": lambda good: (
        good,
        "application/x-www-form-urlencoded",
        "",
        415,
        "is not one of an image",
    ),
    "50 MB": lambda good: (bytes(50_000_000), "image/png", "", 413, "has more than 16 MB"),
    "50 MB in a form": lambda good: (
        *form([bytes(1_000_000)] * 50),
        "",
        413,
        "has more than 16 MB",
    ),
    "65 images": lambda good: (*form([good] * 65), "", 413, "are more than 64"),
    "no image": lambda good: (*form([]), "", 422, "images: is missing"),
    "another field": lambda good: (*form([good], "photo"), "", 422, "photo: is not expected"),
    "one of three is bad": lambda good: (
        *form([good, good[:99], good]),
        "",
        422,
        "1: is not a readable image",
    ),
    "no boundary": lambda good: (good, "multipart/form-data", "", 400, "boundary"),
    "not a form": lambda good: (
        good,
        "multipart/form-data; boundary=x",
        "",
        400,
        "is not multipart/form-data",
    ),
    "no class": lambda good: (
        good,
        "image/png",
        "?top=0",
        422,
        "top=0: is not a number of classes",
    ),
    "not a number": lambda good: (good, "image/png", "?top=all", 422, "top=all"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_request_gets_status_and_reason(whole, samples, case):
    body, kind, query, status, words = BAD[case](samples[1].content)
    answered, document, _ = whole.post(body, kind, query)
    assert (answered, list(document)) == (status, ["error"])
    assert words in document["error"]
    assert whole.post(samples[0].content)[0] == 200


def test_a_body_without_an_end_is_cut_off(whole):
    piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", whole.port), 30) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        connection.settimeout(0.001)
        answer = b""
        while not answer:
            connection.settimeout(30)
            connection.sendall(piece)
            sent += 0x10000
            assert sent < 64 * MB
            connection.settimeout(0.001)
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert sent > 16 * MB


def test_full_queue_refuses_with_retry_after(whole, samples):
    good = samples[0].content
    head = (
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: "
        b"%d\r\n\r\n" % len(good)
    )
    with contextlib.ExitStack() as held:
        slow = [
            held.enter_context(socket.create_connection(("127.0.0.1", whole.port), 30))
            for _ in range(QUEUE)
        ]
        for connection in slow:
            connection.sendall(head + good[:10])
        until(lambda: whole.metric("raysft_requests_open") == QUEUE)
        status, document, headers = whole.post(good)
        assert (status, headers["retry-after"]) == (503, "1")
        assert document["error"] == f"queue: {QUEUE} requests are waiting; send it again later"
        for connection in slow:
            connection.sendall(good[10:])
        assert [connection.recv(12) for connection in slow] == [b"HTTP/1.1 200"] * QUEUE
    assert whole.post(good)[0] == 200


def test_what_the_model_is(whole):
    status, text = whole.get("/")
    about = json.loads(text)
    assert (status, tuple(about["classes"]), about["scores"]) == (
        200,
        CLASSES,
        {"test_accuracy": 0.2},
    )
    assert about["limits"] == {"body_mb": 16, "images": 64, "megapixels": 50, "queue": QUEUE}
    assert whole.get("/elsewhere")[0] == 404
    assert json.loads(whole.get("/predict")[1])["error"].startswith(
        "GET /predict: method not allowed"
    )


def test_dying_replica_loses_only_requests_it_had(whole, samples):
    enough = threading.Event()
    answers: list[list[tuple[int, dict]]] = [[] for _ in range(CLIENTS)]

    def client(me: int) -> int:
        """How many requests it has sent."""
        with contextlib.closing(whole.connect()) as connection:
            for number in itertools.count():
                if enough.is_set():
                    return number
                sample = samples[number % len(samples)]
                connection.request(
                    "POST", "/predict", sample.content, {"content-type": "application/octet-stream"}
                )
                status, document, _ = read(connection.getresponse())
                answers[me].append((status, document))
                if status == 200:
                    assert_same(document["predictions"][0], sample.ranking)
        raise AssertionError

    def count() -> int:
        return sum(map(len, answers))

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, me) for me in range(CLIENTS)]
        try:
            until(lambda: count() > 200)
            whole.replicas()[0].kill()
            at_death = count()
            whole.wait_until_whole()
            until(lambda: count() > at_death + 200)
        finally:
            enough.set()
        assert sum(done.result() for done in clients) == count()
    lost = [[document for status, document in mine if status != 200] for mine in answers]
    assert all(status in (200, 503) for mine in answers for status, _ in mine)
    assert max(map(len, lost)) <= 1  # what a client sent afterwards was answered by another replica
    assert all(
        "died while it had this request" in document["error"] for mine in lost for document in mine
    )


def test_request_in_dying_replica_fails_without_hanging(whole, samples):
    slow, _ = form([png(7_000, 7_000)] * 30)  # seconds of decoding
    spent = {replica: replica.cpu_times().user for replica in whole.replicas()}

    def at_work() -> list[psutil.Process]:
        return [
            replica for replica, before in spent.items() if replica.cpu_times().user - before > 0.5
        ]

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(whole.post, slow, "multipart/form-data; boundary=x")
        until(at_work)
        at_work()[0].kill()
        status, document, headers = asked.result(30)
    assert (status, headers["retry-after"]) == (503, "1")
    assert "died while it had this request" in document["error"]
    assert whole.post(samples[0].content)[0] == 200  # the other replica is there


def test_requests_wait_for_next_replica_when_unhealthy(whole, samples):
    for replica in whole.replicas():
        replica.kill()
    # The very answer is looked at: when the next one comes, the replicas may be back.
    answers = []
    until(lambda: answers.append(whole.health()) or answers[-1][0] == 503)
    assert answers[-1][1]["replicas"] in (0, 1)
    status, document, _ = whole.post(samples[0].content)
    assert status == 200
    assert_same(document["predictions"][0], samples[0].ranking)
    whole.wait_until_whole()


def test_wrong_settings_are_refused_before_ray_starts(model, tmp_path, monkeypatch):
    def serve_with(folder: Path = model, **settings) -> None:
        serve_model(str(folder), Settings(**settings), None)  # type: ignore[arg-type]

    with pytest.raises(UserError, match="is not a model"):
        serve_with(tmp_path)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match="cannot be used"),
    ):
        serve_with(port=taken.getsockname()[1])
    monkeypatch.setattr(serving, "this_node", lambda: Node(2, 1))
    with pytest.raises(ResourceError, match="2 replicas would take 2 GPUs, this machine has 1"):
        serve_with(replicas=2, gpus_per_replica=1)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"pip install 'raysft\[serve\]'"):
        serve_with()


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", 1), ("127.0.0.1", 0)])
def test_an_open_door_is_warned_of(model, monkeypatch, host, warned):
    class Said(BaseException):  # as Ctrl-C: no log is kept
        pass

    class Recorder:
        warnings: list[str] = []  # noqa: RUF012

        def warning(self, text: str) -> None:
            self.warnings.append(text)

        def line(self, text: str) -> None:
            raise Said

    recorder = Recorder()
    recorder.warnings = []
    with pytest.raises(Said):
        serve_model(str(model), Settings(host=host, port=0), recorder)  # type: ignore[arg-type]
    assert len(recorder.warnings) == warned
    assert all("no authentication" in text for text in recorder.warnings)


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.3", False),
        ("example.org", False),
    ],
)
def test_which_hosts_are_this_machine_alone(host, inside):
    assert is_loopback(host) == inside


def test_ctrl_c_answers_accepted_requests_then_ends_everything(server, samples):
    """The last one: the server is gone afterwards."""
    good = samples[0].content
    head = (
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: "
        b"%d\r\n\r\n" % len(good)
    )
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(head + good[:10])
        until(lambda: server.metric("raysft_requests_open") == 1)
        server.process.send_signal(signal.SIGINT)
        until(lambda: not reachable(server.port))
        connection.sendall(good[10:])
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert server.process.wait(30) == 130
    assert_nothing_is_left(server.mark, server.begun)
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def reachable(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
