"""Checkpoints: that a resumed run goes on to the bit, what is saved, and what doesn't fit."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file
from support.helpers import COMPILED, same_bits
from support.optimizer_cases import CASES, leaves, made
from support.snapshots import assert_unchanged, snapshot

import fastgd
from fastgd.checkpoint import container as _container
from fastgd.schedules import Cosine, Linear, Warmup


@pytest.fixture
def file(tmp_path):
    return str(tmp_path / "run.safetensors")


def assert_same(opt, other):
    for a, b in zip(snapshot(opt)[0], snapshot(other)[0], strict=True):
        assert same_bits(a, b)
    for g, h in zip(opt.param_groups, other.param_groups, strict=True):
        assert all(g[key] == h[key] and type(g[key]) is type(h[key]) for key in opt.defaults)


# --------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_resuming_gives_the_bits_of_never_having_stopped(name, options, backend, file):
    fastgd.set_backend(backend)
    for dtype in (np.float32, np.float64):
        opt, _, draw = made(name, options, dtype)
        for _ in range(3):
            opt.step(draw())
        fastgd.save(file, opt)
        other, _, draw_other = made(name, {"lr": 0.5}, dtype, seed=1)
        other.step(draw_other())
        fastgd.load(file, other)
        assert_same(opt, other)
        for _ in range(3):
            grads = draw()
            opt.step(grads)
            other.step(grads)
        assert_same(opt, other)


def several(seed, **options):
    """Groups of nested, named and unnamed parameters, with schedules, and gradients for them."""
    rng = np.random.default_rng(seed)

    def draw():
        return [
            {"enc": {"é.W": np.asfortranarray(rng.random((3, 4))), "b": rng.random(4)}, "a.b": rng.random(())[...]},
            [rng.random(300, np.float32), [rng.random((0, 2)), rng.random(65, np.float32)]],
        ]  # fmt: skip

    first, second = draw()
    groups = [
        {"params": first, "lr": Warmup(3, Cosine(0.1, 8))},
        {"params": second, "betas": (Linear(0.7, 0.95, 6), 0.99), "weight_decay": lambda t: 0.01 * t},
    ]  # fmt: skip
    return fastgd.AdamW(groups, **options), groups, draw


def test_groups_schedules_and_missing_gradients(file):
    opt, _, draw = several(0, amsgrad=True)

    def steps(optimizers, count):
        for t in range(count):
            first, second = draw()
            first["enc"]["b"] = None
            second[0] = None if t % 2 else second[0]
            for o in optimizers:
                o.step([first, second])

    steps([opt], 4)
    fastgd.save(file, opt)
    other, _, _ = several(7)
    fastgd.load(file, other)
    assert other.param_groups[0]["amsgrad"]
    assert int(other.state["0.enc.b"]["step"]) == 0
    assert other.param_groups[0]["lr"] == Warmup(3, Cosine(0.1, 8))
    steps([opt, other], 4)
    for a, b in zip(snapshot(opt)[0], snapshot(other)[0], strict=True):
        assert same_bits(a, b)


def test_another_process_resumes(file):
    code = """
import sys, numpy as np, fastgd
w, rng = np.zeros(1000, np.float32), np.random.default_rng(3)
opt = fastgd.Adam({"w": w}, lr=0.1)
if sys.argv[1] == "resume":
    rng.bit_generator.state = fastgd.load(sys.argv[2], opt)["rng"]
for _ in range(int(sys.argv[3])):
    opt.step({"w": rng.standard_normal(1000, np.float32) + w})
if sys.argv[1] == "save":
    fastgd.save(sys.argv[2], opt, metadata={"rng": rng.bit_generator.state})
print(w.tobytes().hex())
"""

    def run(*args):
        command = [sys.executable, "-W", "error", "-c", code, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    whole = run("whole", file, "10")
    run("save", file, "6")
    assert run("resume", file, "4") == whole


def test_special_values_come_back(file):
    values = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0x80000000, 1], np.uint32)
    w = values.view(np.float32).copy()
    fastgd.save(file, params=[w])
    back = np.zeros_like(w)
    fastgd.load(file, params=[back])
    assert back.view(np.uint32).tolist() == values.tolist()


def test_bound_gradients_stay_bound(file):
    w, g = np.zeros(3), np.ones(3)
    opt = fastgd.SGD([w], lr=1.0, momentum=0.5, grads=[g])
    opt.step()
    fastgd.save(file, opt)
    opt.step()
    fastgd.load(file, opt)
    opt.step()
    assert w.tolist() == [-2.5] * 3


# ---------------------------------------------------------------------------- what is saved


def test_other_tools_find_the_arrays_by_name(file):
    opt = fastgd.SGD({"enc": {"W": np.ones((2, 3))}, "b": np.zeros(2)}, momentum=0.9)
    opt.step({"enc": {"W": np.ones((2, 3))}, "b": None})
    fastgd.save(file, opt)
    arrays = load_file(file)
    assert sorted(arrays) == ["opt.state.0.momentum_buffer", "params.b", "params.enc.W"]
    assert same_bits(arrays["params.enc.W"], opt.param_groups[0]["params"][0])


def test_arrays_begin_where_their_items_are_aligned(file):
    """So that others may map the file into memory and use it where it is."""
    dtypes = (np.int8, np.float32, np.uint16, np.float64)
    for extra in range(9):  # headers of every length
        params = {str(k) * (extra + 1): np.ones(3, dtype) for k, dtype in enumerate(dtypes)}
        fastgd.save(file, params=params)
        data = Path(file).read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        for name, p in params.items():
            assert (start + header[f"params.{name}"]["data_offsets"][0]) % p.itemsize == 0


def test_names_that_are_not_unicode(file):
    w, back = (
        {"\ud800": np.ones(2), "\0\n": np.ones(3)},
        {"\ud800": np.zeros(2), "\0\n": np.zeros(3)},
    )
    fastgd.save(file, params=w)
    fastgd.load(file, params=back)
    assert all(same_bits(back[key], a) for key, a in w.items())


def test_metadata_come_back(file):
    metadata = {
        "epoch": 3,
        "loss": [0.5, float("inf")],
        "best": (np.float32(0.25), None),
        7: "seven",
        "rng": np.random.default_rng(0).bit_generator.state,
        "mask": np.array([[True, False]], order="F"),
    }
    fastgd.save(file, params=np.zeros(1), metadata=metadata)
    back = fastgd.load(file)
    mask, expected = back.pop("mask"), metadata.pop("mask")
    assert back == metadata
    assert list(back) == list(metadata)
    assert type(back["best"][0]) is np.float32
    assert same_bits(mask.view(np.uint8), expected.view(np.uint8))
    assert mask.flags.writeable
    fastgd.save(file, params=np.zeros(1))
    assert fastgd.load(file) == {}


def trees():
    return {
        "an array": np.zeros((2, 3)),
        "a list": [np.zeros(2), [np.zeros(()), np.zeros((0, 2))]],
        "a dict": {"W": np.zeros(2), "in": {"b": np.zeros(3, np.float32)}},
        "groups": [{"params": [np.zeros(2)], "lr": 0.5}, {"params": {"W": np.zeros(3)}}],
        "a group": [{"params": {"W": np.zeros(3)}}],
    }


@pytest.mark.parametrize("form", trees())
@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True), (False, False)])
def test_params_in_every_form_given_or_not(form, given, file):
    tree, back = trees()[form], trees()[form]
    opt, other = fastgd.Adagrad(tree), fastgd.Adagrad(back)
    for k, p in enumerate(p for g in opt.param_groups for p in g["params"]):
        p[...] = k + 1
    fastgd.save(file, opt, params=tree if given[0] else None)
    fastgd.load(file, other, params=back if given[1] else None)
    assert_same(opt, other)
    assert all(p.all() for g in other.param_groups for p in g["params"])


def test_params_alone(file):
    opt = fastgd.SGD({"W": np.ones(2)}, momentum=0.9)
    opt.step({"W": np.ones(2)})
    fastgd.save(file, opt)
    w = np.zeros(2)
    fastgd.load(file, params={"W": w})
    assert same_bits(w, opt.param_groups[0]["params"][0])


def test_a_tree_with_more_than_is_trained(file):
    """Read-only, strided, and of other dtypes: what is no parameter may be anything."""
    model = {"W": np.ones(3), "count": np.array([5]), "mean": np.arange(6.0)[::2]}
    opt = fastgd.SGD({"W": model["W"]})
    constant = np.broadcast_to(np.float16(3), (2, 2))
    fastgd.save(file, opt, params={**model, "constant": constant})
    back = {"W": np.zeros(3), "count": np.array([0]), "mean": np.zeros(6)[::2]}
    back["constant"] = np.zeros((2, 2), np.float16, order="F")
    fastgd.load(file, fastgd.SGD({"W": back["W"]}), params=back)
    assert all(np.array_equal(back[key], a) for key, a in model.items())
    assert np.array_equal(back["constant"], constant)


def test_no_params(file):
    w = np.zeros(2)
    opt = fastgd.SGD(w, lr=0.5)
    fastgd.save(file, opt, params=[])
    w[...] = 7
    opt.lr = 0.1
    with pytest.raises(fastgd.CheckpointError, match="params: expected 1 parameters, found 0"):
        fastgd.load(file, opt)
    assert opt.lr == 0.1
    fastgd.load(file, opt, params=[])
    assert (opt.lr, w.tolist()) == (0.5, [7, 7])


def test_iterators_hold_parameters(file):
    w, back = np.ones(2), np.zeros(2)
    fastgd.save(file, params=iter([w]))
    fastgd.load(file, params=(a for a in [back]))
    assert same_bits(w, back)


def test_parameters_are_matched_as_states_are(file):
    """By name, if there are names: states and parameters must never part."""
    opt = fastgd.SGD({"a": np.full(2, 1.0), "b": np.full(2, 2.0)}, momentum=0.5, lr=1.0)
    opt.step({"a": np.full(2, 1.0), "b": np.full(2, 2.0)})
    opt.step({"a": np.full(2, 1.0), "b": np.full(2, 2.0)})
    fastgd.save(file, opt)
    turned = {"b": np.zeros(2), "a": np.zeros(2)}
    other = fastgd.SGD(turned)
    fastgd.load(file, other)
    assert other.state["b"]["momentum_buffer"].tolist() == [3, 3]
    assert turned["b"].tolist() == [-3, -3]
    unnamed = [np.zeros(2), np.zeros(2)]
    other = fastgd.SGD(unnamed)
    fastgd.load(file, other)
    assert other.state[1]["momentum_buffer"].tolist() == [3, 3]
    assert unnamed[1].tolist() == [-3, -3]


def test_an_added_group(file):
    a = fastgd.SGD({"W": np.zeros(2)}, momentum=0.5)
    a.add_param_group({"params": {"W": np.ones(3)}})
    a.step([{"W": np.ones(2)}, {"W": np.ones(3)}])
    fastgd.save(file, a)
    b = fastgd.SGD([{"params": {"W": np.zeros(2)}}, {"params": {"W": np.zeros(3)}}])
    fastgd.load(file, b)
    assert_same(a, b)


@pytest.fixture
def meanwhile():
    """Try something in another thread, and say whether it has to wait."""
    threads = []

    def start(call):
        threads.append(threading.Thread(target=call))
        threads[-1].start()
        threads[-1].join(0.2)
        return threads[-1].is_alive()

    start.join = lambda: [thread.join() for thread in threads]
    return start


def test_steps_wait_while_a_file_is_written(file, monkeypatch, meanwhile):
    """Else it might have the states from before a step, and the parameters from after it."""
    w, write, waited = np.zeros(3), _container.write_all, []
    opt = fastgd.SGD([w], lr=1.0, momentum=0.5)
    opt.step([np.ones(3)])

    def slow(new, data):
        waited.append(waited or meanwhile(lambda: opt.step([np.ones(3)])))
        write(new, data)

    monkeypatch.setattr(_container, "write_all", slow)
    fastgd.save(file, opt)
    meanwhile.join()
    assert waited[0] is True
    assert w.tolist() == [-2.5] * 3
    fastgd.load(file, opt)
    assert w.tolist() == [-1] * 3
    assert int(opt.state[0]["step"]) == 1


def test_steps_wait_while_a_file_is_loaded(file, monkeypatch, meanwhile):
    w, waited = np.full(3, 5.0), []
    opt = fastgd.SGD([w], lr=1.0)
    fastgd.save(file, opt)
    w[...] = 7
    read = opt.load_state_dict

    def slow(state_dict):
        read(state_dict)
        waited.append(meanwhile(lambda: opt.step([np.ones(3)])))

    monkeypatch.setattr(opt, "load_state_dict", slow)
    fastgd.load(file, opt)
    meanwhile.join()
    assert waited == [True]
    assert w.tolist() == [4] * 3


def test_arrays_that_are_written_to_meanwhile_are_whole_files(file):
    """Whose values are from when, nobody can say; but the checksums are of what was written."""
    w, stop = np.zeros(1_000_000), threading.Event()

    def scribble():
        while not stop.is_set():
            w[...] += 1

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(10):
            fastgd.save(file, params=[w])
            fastgd.load(file)
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("size", [2**17 - 1, 2**17, 2**17 + 1, 3 * 2**17])
def test_arrays_around_the_size_of_a_piece(size, file):
    w, back = np.arange(size, dtype=np.float64), np.zeros(size)
    fastgd.save(file, params=[w, np.ones(3, np.int8)])
    fastgd.load(file, params=[back, np.zeros(3, np.int8)])
    assert same_bits(w, back)


# ------------------------------------------------------------------------ what doesn't fit


def fresh(kind=fastgd.Adam, dtype=np.float64, **shapes):
    params = {key: np.full(shape, 3.0, dtype) for key, shape in (shapes or {"a": 2, "b": (2, 3)}).items()}  # fmt: skip
    opt = kind(params, lr=0.5)
    opt.step({key: np.full_like(p, 2.0) for key, p in params.items()})
    return opt


MISMATCHES = {
    "class": (lambda: fresh(fastgd.SGD), "optimizer: expected SGD, found Adam"),
    "decay": (lambda: fresh(fastgd.AdamW), "optimizer: expected AdamW, found Adam"),
    "dtype": (lambda: fresh(dtype=np.float32), r'params\["a"\]: expected dtype float32, found float64'),
    "shape": (lambda: fresh(a=2, b=6), r'params\["b"\]: expected shape \(6,\), found \(2, 3\)'),
    "names": (lambda: fresh(a=2, c=(2, 3)), r"params: expected parameters \['a', 'c'\], found \['a', 'b'\]"),
    "count": (lambda: fresh(a=2), "params: expected 1 parameters, found 2"),
    "groups": (lambda: several(0)[0], "params: expected 2 groups, found 1"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISMATCHES)
def test_what_does_not_fit_changes_nothing(what, file):
    make, message = MISMATCHES[what]
    opt = make()
    fastgd.save(file, fresh())
    before = snapshot(opt)
    with pytest.raises(fastgd.CheckpointError, match=rf"^{file}: {message}"):
        fastgd.load(file, opt)
    assert_unchanged(opt, before)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": np.ones(2), "b": np.ones((3, 2))}, r'params\["b"\]: expected shape \(3, 2\)'),
        ({"a": np.ones(2), "b": np.broadcast_to(1.0, (2, 3))}, r'params\["b"\]: expected a writeable'),
        ({"a": np.ones(2)}, "params: expected 1 parameters, found 2"),
        ([{"params": [np.ones(2)]}, {"params": [np.ones((2, 3))]}], "params: expected 2 groups"),
    ],
)  # fmt: skip
def test_params_that_do_not_fit_change_nothing(params, message, file):
    opt = fresh()
    fastgd.save(file, opt)
    opt.step({"a": np.ones(2), "b": np.ones((2, 3))})
    before = snapshot(opt)
    with pytest.raises(fastgd.CheckpointError, match=message):
        fastgd.load(file, opt, params=params)
    assert_unchanged(opt, before)
    assert all((p == 1).all() for p in leaves(params) if isinstance(p, np.ndarray))


def test_states_that_do_not_fit_change_no_params(file):
    w = np.zeros(2)
    fastgd.save(file, fastgd.SGD([np.ones(3)]), params=[np.ones(2)])
    opt = fastgd.SGD([w], momentum=0.9)
    opt.step([np.zeros(2)])
    fastgd.load(file, opt, params=[w])  # without states there is nothing that doesn't fit
    assert w.tolist() == [1, 1]
    stepped = fastgd.SGD([np.ones(3)], momentum=0.9)
    stepped.step([np.ones(3)])
    fastgd.save(file, stepped, params=[np.full(2, 5.0)])
    with pytest.raises(fastgd.CheckpointError, match="momentum_buffer.*expected shape"):
        fastgd.load(file, opt, params=[w])
    assert w.tolist() == [1, 1]


def test_a_file_without_an_optimizer(file):
    fastgd.save(file, params=[np.ones(2)])
    opt = fastgd.SGD([np.zeros(2)])
    with pytest.raises(fastgd.CheckpointError, match="optimizer: expected SGD, found none"):
        fastgd.load(file, opt)
    assert opt.param_groups[0]["params"][0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: fastgd.save(f), ValueError, "^params: expected parameters or an optimizer"),
        (lambda f: fastgd.save(f, {"W": np.ones(2)}), TypeError, "^opt: expected an optimizer, found dict"),
        (lambda f: fastgd.load(f, [np.ones(2)]), TypeError, "^opt: expected an optimizer, found list"),
        (lambda f: fastgd.save(f, params=[3.0]), TypeError, r"^params\[0\]: expected an array, found"),
        (lambda f: fastgd.load(f, params={"W": "x"}), TypeError, r'^params\["W"\]: expected an array'),
        (lambda f: fastgd.save(f, params={np.float64(1)}), TypeError, "^params: .*which has no order"),
        (lambda f: fastgd.save(f, params=[{"params": []}, 3]), TypeError, r"^params\[1\]: expected a dict with 'params'"),
        (lambda f: fastgd.save(f, params={"a.b": np.ones(1), "a": {"b": np.ones(1)}}), ValueError, "^params: two parameters are named 'a.b'"),
        (lambda f: fastgd.save(f, params=[np.ones(1, complex)]), TypeError, r"^params\[0\]: expected an array of"),
        (lambda f: fastgd.save(f, params=[], metadata=[1]), TypeError, "^metadata: expected a dict, found list"),
        (lambda f: fastgd.save(f, params=[], metadata={"a": {1}}), TypeError, r'^metadata\["a"\]: expected numbers'),
        (lambda f: fastgd.save(3.5, params=[]), TypeError, "^path: expected a str or a path, found float"),
    ],
)  # fmt: skip
def test_bad_arguments_write_nothing(call, error, message, file, tmp_path):
    with pytest.raises(error, match=message):
        call(file)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------ extras


def test_without_safetensors(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: fastgd.save(file, params=[]), lambda: fastgd.load(file)):
        with pytest.raises(
            ImportError, match=r'needs safetensors: pip install "fastgd\[checkpoint\]"'
        ):
            call()


def test_files_as_written_need_no_check_by_the_library(file, monkeypatch):
    """Which would take most of the time of a load, if there are many small arrays."""
    w, back = (
        {'é\\"': np.full(3, value, bfloat16), "b": np.full((2, 3), value), "none": np.zeros((0, 2))}
        for value in (1.0, 0.0)
    )
    metadata = {"state": {np.int64(3): np.float32(0.5), "$x": (np.ones(2, ">i4"), "NaN")}}
    fastgd.save(file, params=w, metadata=metadata)
    monkeypatch.setattr("safetensors.safe_open", None)
    found = fastgd.load(file, params=back)["state"]
    assert (found[3], found["$x"][0].tolist(), found["$x"][1]) == (0.5, [1, 1], "NaN")
    assert all(same_bits(back[key], a) for key, a in w.items())


def test_garbage_is_collected_again(file):
    """Also after an error."""
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            fastgd.save(file, params=[np.ones(2)])
            with pytest.raises(TypeError):
                fastgd.save(file, params=[np.ones(2, complex)])
            with pytest.raises(fastgd.CheckpointError):
                fastgd.load(file, params=[np.ones(3)])
            assert gc.isenabled() is enabled
        finally:
            gc.enable()


def test_safetensors_is_imported_when_needed():
    code = "import sys, fastgd; fastgd.save, fastgd.CheckpointError; print('safetensors' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "False\n"
    assert {"save", "load", "CheckpointError", "checkpoint"} <= set(dir(fastgd))


def test_neither_saved_nor_loaded_while_averages_are_swapped_in(tmp_path):
    w = np.ones(3)
    opt = fastgd.SGD(w, lr=1.0, average=0.5)
    file = tmp_path / "run.safetensors"
    fastgd.save(file, opt)
    opt.step(np.ones(3))
    before = file.read_bytes()
    with opt.average.swapped():
        inside = w.copy()
        with pytest.raises(RuntimeError, match="save: the averages are swapped in"):
            fastgd.save(file, opt)
        with pytest.raises(RuntimeError, match="load: the averages are swapped in"):
            fastgd.load(file, opt)
        assert (w == inside).all()
    assert file.read_bytes() == before
    assert (w == 0).all()
