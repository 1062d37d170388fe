"""What ``race --serve`` answers: real steps, clear refusals, and nothing to strangers."""

from __future__ import annotations

import json
import math
import re
import socket
import threading
from http.client import HTTPConnection
from urllib.parse import urlencode

import numpy as np
import pytest

from fastgd.__main__ import main
from fastgd.surfaces import SURFACES

pytest.importorskip("PIL.Image", reason="the extra `plot` is not installed")
from fastgd.commands import choice, descents, live
from fastgd.commands.live import answers

BEGIN = answers.begin(SURFACES["beale"], 60, list(choice.CLASSIC), None)


@pytest.fixture(scope="module")
def server():
    with live.Server(0, BEGIN) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server, target, **headers):
    """Status and body."""
    host, port = server.server_address
    connection = HTTPConnection(host, port, timeout=60)
    try:
        connection.request(
            "GET", target, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def race(server, query):
    status, body = get(server, f"/race?{query}")
    assert status == 200, body

    def refuse(name):
        raise AssertionError(f"JSON knows no {name}")

    return json.loads(body, parse_constant=refuse)


def test_answers_are_the_command_s_own_runs(server):
    runs = descents.race(SURFACES["beale"], 60)
    found = race(server, BEGIN)
    assert found["start"] == list(SURFACES["beale"].start)
    assert [run["name"] for run in found["runs"]] == list(runs)
    for run in found["runs"]:
        own = runs[run["name"]]
        assert run["path"] == own.path.tolist(), "to the bit"
        assert run["gaps"] == own.values.tolist()
        assert (run["lr"], run["arrival"], run["diverged"]) == (own.lr, own.arrival, None)


def test_every_optimizer_from_another_start(server):
    """In a few races, as one has no more than so many."""
    names = list(answers.MAKERS)
    assert len(names) > 30
    for k in range(0, len(names), answers.RUNS):
        asked = names[k : k + answers.RUNS]
        pairs = [("run", f"{name}:0.002") for name in asked]
        query = urlencode([("surface", "himmelblau"), ("start", "1,-2.5"), ("steps", 7), *pairs])
        for name, run in zip(asked, race(server, query)["runs"], strict=True):
            path = descents.descend(
                answers.MAKERS[name], SURFACES["himmelblau"], (1, -2.5), 7, lr=0.002
            )
            assert (run["name"], run["path"]) == (name, path.tolist())


def test_noise_is_the_same_for_all_and_follows_from_the_seed(server):
    """Plain descent tells what was added to its gradients."""
    surface = SURFACES["quadratic"]

    def noises(seed, *runs):
        query = "&".join(["surface=quadratic&steps=400&noise=0.5", f"seed={seed}", *runs])
        for run in race(server, query)["runs"]:
            path = np.array(run["path"])
            yield (path[:-1] - path[1:]) / run["lr"] - surface.gradient(path[:-1])

    a, b = noises(1, "run=SGD:0.1", "run=heavy+ball:0.05")
    (other,) = noises(2, "run=SGD:0.1")
    usual = math.hypot(*surface.gradient(np.array(surface.start)))
    assert a.std() == pytest.approx(0.5 * usual, rel=0.1)
    assert b[0] == pytest.approx(a[0]), "whose first step is plain descent"
    assert abs(other - a).max() > usual / 10


def test_the_address_says_what_counts_as_arrival(server):
    near = answers.begin(SURFACES["quadratic"], 60, ["SGD"], 0.1, 0.5)
    assert near == "surface=quadratic&steps=60&tolerance=0.5&run=SGD:0.1&run=heavy+ball:0.1"
    arrivals = [
        race(server, query)["runs"][0]["arrival"]
        for query in (near, near.replace("&tolerance=0.5", ""))
    ]
    # Plain descent multiplies x, which is 2 at first, by 0.9, and y by 0.
    assert arrivals == [math.ceil(math.log(t / 2, 0.9)) for t in (0.5, descents.TOLERANCE)]


def test_what_diverges_ends_where_it_leaves(server):
    (run,) = race(server, "surface=rosenbrock&steps=40&run=SGD:10")["runs"]
    path = np.array(run["path"])
    assert run["arrival"] is None
    assert 0 < run["diverged"] == len(path) == len(run["gaps"]) < 40
    assert np.abs(path).max() < answers.FAR
    assert np.isfinite(run["gaps"]).all()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "expected 1 to 14 optimizers, found 0"),
        ("surface=beale", "expected 1 to 14 optimizers, found 0"),
        (urlencode([("run", name) for name in list(answers.MAKERS)[:15]]), "found 15"),
        ("run=Adamm", "no optimizer is called 'Adamm'; did you mean Adam?"),
        ("run=SparseAdam", "no optimizer is called 'SparseAdam'"),
        ("run=Adam&run=Adam:0.1", "run: Adam is there twice"),
        ("run=Adam:", "learning rate of Adam: expected a number above 0"),
        ("run=Adam:0", "above 0"),
        ("run=Adam:nan", "found 'nan'"),
        ("run=Adam:inf", "found 'inf'"),
        ("run=Adam:1:2", "found '1:2'"),
        ("surface=moon&run=SGD", "no surface is called 'moon'"),
        ("surface=double_well&run=SGD", "no surface is called 'double_well'"),
        ("steps=2001&run=SGD", "steps: expected an integer from 1 to 2000, found '2001'"),
        ("steps=0&run=SGD", "found '0'"),
        ("steps=%C2%B2&run=SGD", "expected an integer"),
        ("steps=" + "9" * 5000 + "&run=SGD", "expected an integer"),
        ("start=1&run=SGD", "start: expected 2 numbers with a comma between"),
        ("start=1,9&run=SGD", "start, y: expected a number from -4.5 up to 4.5, found '9'"),
        ("noise=-1&run=SGD", "noise: expected a number from 0 up to 10"),
        ("seed=x&run=SGD", "seed: expected an integer"),
        ("seed=1&seed=2&run=SGD", "once each, found seed"),
        ("tolerance=0&run=SGD", "tolerance: expected a number above 0"),
        ("colour=1&run=SGD", "found colour"),
        ("run", "expected NAME=VALUE"),
    ],
    ids=lambda text: text[:24],
)
def test_nonsense_is_refused_in_words(server, query, message):
    status, body = get(server, f"/race?{query}")
    assert status == 400
    assert message in json.loads(body)["error"]


def test_what_a_class_refuses_is_said_with_its_name(server, monkeypatch):
    def picky(w, lr):
        raise ValueError("lr: expected a power of two")

    monkeypatch.setitem(answers.MAKERS, "SGD", picky)
    status, body = get(server, "/race?run=SGD:0.3")
    assert (status, json.loads(body)) == (400, {"error": "SGD: lr: expected a power of two"})


def test_strangers_get_nothing(server):
    port = server.server_address[1]
    own = f"127.0.0.1:{port}"
    for target in ("/", "/race?run=SGD", "/contours?surface=beale"):
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1",
            f"127.0.0.1:{port + 1}",
            "",
        ):
            assert get(server, target, Host=host)[0] == 403, host
        for origin in (
            "http://evil.example",
            "null",
            f"https://{own}",
            f"http://127.0.0.1:{port + 1}",
        ):
            assert get(server, target, Host=own, Origin=origin)[0] == 403, origin
        assert get(server, target, Host=f"localhost:{port}", Origin=f"http://{own}")[0] == 200
    assert get(server, "/race?run=SGD", Sec_Fetch_Site="cross-site")[0] == 403
    assert get(server, "/", Sec_Fetch_Site="cross-site")[0] == 200, "a link may stand anywhere"
    for target in ("/etc/passwd", "//[", "/race/../x?run=SGD"):
        assert get(server, target)[0] == 404
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_holds_all_it_needs(server):
    status, text = get(server, "/")
    assert status == 200
    assert not re.findall(r'(?:src|srcset|href)="(?!data:)', text)
    assert not re.search(r"url\((?!#)|@import|@[A-Z]+@", text)
    assert re.findall(r"https?://[^\s\"]*", text) == ["http://www.w3.org/2000/svg"]
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert {row["name"] for row in data["optimizers"]} == set(answers.MAKERS)
    assert data["begin"] == BEGIN
    for name in answers.DRAWABLE:
        status, body = get(server, f"/contours?surface={name}")
        assert status == 200
        bands = json.loads(body)["bands"]
        assert len(bands) > 10
        assert all(re.fullmatch(r"(M\d+,\d+( \d+,\d+)*Z)*", band) for band in bands)
    assert get(server, "/contours?surface=moon")[0] == 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--serve", "--steps", "3000"], "expected at most 2000 steps, found 3000"),
        (["--serve", "--optimizer", "all"], "expected at most 14 optimizers at once"),
        (["--serve", "--tolerance", "1e7"], "tolerance: expected a number above 0 up to 1e+06"),
        (["--serve", "--lr", "1e7"], "learning rate of SGD: expected a number above 0"),
        (["--serve", "--output", "a.gif"], "--serve writes no file: leave --output out"),
        (["--open"], "--port and --open belong to --serve"),
        (["--port", "0"], "--port and --open belong to --serve"),
    ],
)
def test_options_that_contradict_each_other(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["race", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["race", "--serve", "--port", str(port)]) == 1
    assert f"cannot listen on port {port}: Address already in use" in capsys.readouterr().err


def test_it_ends_when_it_is_interrupted(capsys, monkeypatch):
    server = live.Server(0, BEGIN)

    def struck():
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "serve_forever", struck)
    assert live.serve(server) == 0
    said = f"The race is at {server.address}  (Ctrl-C ends it)\n\nEnded; nothing was written.\n"
    assert capsys.readouterr() == (said, "")
    assert server.socket.fileno() == -1, "closed"
