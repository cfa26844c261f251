"""The page's web server over real connections: who gets what, what is refused, and that it lives on."""

import contextlib
import functools
import itertools
import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest
from test_serve import HOSTILE_UPLOADS, WRONG
from tiny import Network, pipeline

from guided_diffusion_jax.serve import app as page
from guided_diffusion_jax.serve import pictures
from guided_diffusion_jax.serve.controls import controls
from guided_diffusion_jax.serve.texts import Called

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def pipe():
    return pipeline(Network(num_classes=3))


@pytest.fixture(scope="module")
def port(pipe):
    served = page.app(pipe, controls(pipe), Called("RUN"), hosts=page.LOOPBACK)
    server = uvicorn.Server(uvicorn.Config(served, log_level="error"))
    listening = page.listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(10)


def call(port, path, body=None, **headers):
    """Status, headers and body of an answer."""
    kind = {"Content-Type": "application/json"} | headers
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", body, kind)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def ask(port, values, action="generate"):
    status, _, body = call(port, f"images/{action}", json.dumps(values).encode())
    return status, json.loads(body)


def test_the_page_takes_nothing_from_other_hosts(port):
    for name in ("", "page.js", "pad.js", "page.css"):
        status, headers, body = call(port, name)
        assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
        assert b"http://" not in body and b"https://" not in body
    assert json.loads(call(port, "run")[2])["classes"] == ["cat", "dog", "fish"]
    for name in ("x", "..%2f..%2fapp.py", "%2e%2e/app.py", "app.py"):
        status, _, body = call(port, name)
        assert status == 404 and b"import" not in body


def test_frames_of_a_trajectory_come_before_the_answer(port):
    status, headers, body = call(port, "images/trajectory", json.dumps({"count": 2, "frames": 3}).encode())
    parts = [json.loads(line) for line in body.splitlines()]
    assert status == 200 and headers["Content-Type"].startswith("application/x-ndjson")
    assert [len(part["frame"]) for part in parts[:-1]] == [2, 2, 2] and parts[-1]["rows"] == []


def test_ten_visitors_at_once_get_their_own_pictures(port, pipe):
    def visit(seed):
        return ask(port, {"seed": seed, "count": 1, "label": "cat", "weight": seed / 3})

    with ThreadPoolExecutor(10) as visitors:
        answers = list(visitors.map(visit, range(10)))
    assert [status for status, _ in answers] == [200] * 10
    expected = [pictures.urls(pictures.images_of(pipe, asked(seed))) for seed in range(10)]
    assert [answer["rows"][0]["cells"][0] for _, answer in answers] == expected


def asked(seed):
    guided = {"labels": ["cat"], "weight": seed / 3, "interval": (0.0, 19.0), "guidance": ["cfg"]}
    return {**guided, "sampler": "ddim", "spacing": "linspace", "eta": 0.0, "steps": 20, "seed": seed, "count": 1}


def test_hostile_requests_are_answered_and_the_next_one_as_well(port):
    values = [{name: value} for name, some in WRONG.items() for value in some if json_can(value)]
    values += [{"image": upload} for upload in HOSTILE_UPLOADS if upload]
    raw = [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b"NaN", b'{"weight": NaN}', b'{"a": 1, "a": 2}', b"null"]
    assert len(values) + len(raw) >= 200
    for value in values:
        status, answer = ask(port, value)
        assert status == 400 and answer["message"].isprintable(), (value, answer)
    for body in raw:
        status, _, answer = call(port, "images/generate", body)
        assert status == 400 and json.loads(answer)["message"]
    assert call(port, "images/generate", b"{}", **{"Content-Type": "text/plain"})[0] == 415
    assert call(port, "images/nothing", b"{}")[0] == 400 and call(port, "images/generate")[0] == 405
    assert call(port, "images/generate", b"{}", Host="evil.example")[0] == 400
    with contextlib.suppress(urllib.error.URLError, ConnectionError):  # it may hang up while the rest is sent
        assert call(port, "images/generate", bytes(page.LARGEST_REQUEST + 2**20))[0] == 413
    assert ask(port, {"count": 2})[0] == 200


def json_can(value):
    try:
        return len(json.dumps(value)) < 10**7
    except TypeError:
        return False


def test_the_queue_is_bounded_and_an_error_is_told(pipe, monkeypatch, capsys):
    free = threading.Event()

    def slow(*_):
        free.wait(30)
        raise RuntimeError("broken")

    monkeypatch.setitem(pictures.ACTIONS, "generate", slow)
    served = page.app(pipe, controls(pipe), Called("RUN"), warm=False)
    server = uvicorn.Server(uvicorn.Config(served, log_level="error"))
    listening = page.listen("127.0.0.1", 0)
    thread = threading.Thread(target=functools.partial(server.run, sockets=[listening]), daemon=True)
    thread.start()
    port = listening.getsockname()[1]
    with ThreadPoolExecutor(page.MOST_WAITING + 5) as visitors:
        waiting = [visitors.submit(ask, port, {}) for _ in range(page.MOST_WAITING + 5)]
        refused = [future.result() for future in itertools.islice(as_completed(waiting), 5)]
        free.set()
        answers = [future.result() for future in waiting]
    assert {status for status, _ in refused} == {503} and "try again in a moment" in refused[0][1]["message"]
    assert sorted(status for status, _ in answers) == [500] * page.MOST_WAITING + [503] * 5
    assert any("RuntimeError: broken" in answer["message"] for _, answer in answers)
    server.should_exit = True
    thread.join(10)


def test_a_port_that_is_taken_is_told():
    taken = page.listen("127.0.0.1", 0)
    with pytest.raises(page.InputError, match=r"cannot listen on 127.0.0.1:\d+: .* in use; give another --port"):
        page.listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(page.InputError, match=r"cannot listen on no\.such.host.invalid:0"):
        page.listen("no.such.host.invalid", 0)
