"""irstd.Program in ONNX Runtime and LiteRT: programs against the truth of program_truth.py, sizes, and every error."""

from __future__ import annotations

import json
import subprocess
import threading

import numpy as np
import pytest
from onnx import helper, numpy_helper
from program_cases import SIZE, Builder, floats, small
from program_truth import run_program
from runtime_cases import (
    OLD_ONNXRUNTIME,
    OLD_TFLITE,
    TfliteBuilder,
    make_case,
    nchw,
    nhwc,
    onnx_model,
    open_onnx,
    open_tflite,
    run_tflite,
)

from irstd_edge.opspec import DOMAIN, PROGRAM
from irstd_edge.program import write
from irstd_edge.runtimes import library

pytestmark = pytest.mark.usefixtures("libraries")
RESHAPE = 22  # of the schema's BuiltinOperator
OPTIONS = {"version": 1, "height": SIZE[0], "width": SIZE[1]}


def two_of_everything():
    """Images of 3 and 1 channels to a map of 5 at half the size, and one of 1."""
    b = Builder(3, 1)
    grid = b.conv(0, 8, bits=8, pad_top=1, pad_left=1, pad_bottom=1, pad_right=1)
    unit = b.binary(grid, residual=grid, out=8, pad_top=1, pad_left=1, pad_bottom=1, pad_right=1)
    half = b.add("AveragePool", unit, 8, 8, kernel_h=2, kernel_w=2, stride_h=2, stride_w=2)
    head = b.conv(b.add("Concat", (*floats(b, unit), 1), 9), 1, (1, 1), activation=4)
    return b.finish(b.conv(half, 5, (1, 1)), head)


def images(program, size=SIZE, batch=1, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(-64, 65, (batch, t.channels, *size)) / 64).astype(np.float32)
            for t in program.tensors[:program.inputs]]


def truth(program, given):
    """``[N, C, H, W]`` for each output."""
    results = [run_program(program, *x) for x in zip(*given, strict=True)]
    return [np.stack(y) for y in zip(*results, strict=True)]


def check(program, given, results):
    """Equal but for the rounding of sums in float heads."""
    for want, got in zip(truth(program, given), results, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=2e-6)


def onnx_file(program, data=None, outputs=None, constant=True, channels=None, **options):
    count = len(program.outputs) if outputs is None else outputs
    inputs = {f"x{i}": ("n", channels or t.channels, "h", "w") for i, t in enumerate(program.tensors[:program.inputs])}
    names = [f"y{i}" for i in range(count)]
    node = helper.make_node(PROGRAM.name, ["program", *inputs], names, "net", domain=DOMAIN, **OPTIONS | options)
    array = np.frombuffer(write(program) if data is None else data, np.uint8)
    weights = [numpy_helper.from_array(array if constant else array.astype(np.float32), "program")]
    return onnx_model([node], weights, inputs, dict.fromkeys(names, ("n", "c", "oh", "ow")))


def tflite_file(program, data=None, size=SIZE, batch=1, **overrides):
    b = TfliteBuilder()
    inputs = [b.tensor(f"x{i}", (batch, *size, t.channels)) for i, t in enumerate(program.tensors[:program.inputs])]
    outputs = [b.tensor(f"y{i}", (batch, 1, 1, program.tensors[n].channels)) for i, n in enumerate(program.outputs)]
    tflite_node(b, write(program) if data is None else data, inputs, outputs, **overrides)
    return b.finish(inputs, outputs)


def tflite_node(b, data, inputs, outputs, drop=(), array=None, **options):
    from flatbuffers import flexbuffers

    array = np.frombuffer(data, np.uint8) if array is None else array
    values = {k: v for k, v in (OPTIONS | options).items() if k not in drop}
    b.operator([b.tensor("program", array.shape, array), *inputs], outputs, custom=PROGRAM.tflite_name,
               custom_options=flexbuffers.Dumps(values))


def run_onnx(session, given):
    return session.run(None, {f"x{i}": x for i, x in enumerate(given)})


PROGRAMS = {"one": small, "two": two_of_everything}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", PROGRAMS)
def test_onnx_and_tflite_are_exact(name, batch, threads):
    program = PROGRAMS[name]()
    session = open_onnx(onnx_file(program), threads, str(threads))
    interpreter = open_tflite(tflite_file(program), threads)
    for size in (SIZE, (32, 16), (16, 40), SIZE):
        given = images(program, size, batch)
        found = run_onnx(session, given)
        check(program, given, found)
        for a, b in zip(found, run_tflite(interpreter, *given), strict=True):
            np.testing.assert_array_equal(a, b)


def test_every_isa_gives_the_same(monkeypatch):
    program = two_of_everything()
    for isa in library.available_isas():
        monkeypatch.setenv("IRSTD_ISA", isa)
        given = images(program)
        check(program, given, run_onnx(open_onnx(onnx_file(program)), given))
        check(program, given, run_tflite(open_tflite(tflite_file(program)), *given))


def test_concurrent_runs_of_one_session():
    program = two_of_everything()
    session = open_onnx(onnx_file(program), 1, "2")
    sizes = ((16, 24), (16, 8), (24, 24), (8, 8), (40, 8))
    jobs = [images(program, size, 2, seed) for seed in range(2) for size in sizes]
    expected, failures = [run_onnx(session, job) for job in jobs], []

    def work(first):
        for i in range(40):
            k = (first + i) % len(jobs)
            if not all(map(np.array_equal, run_onnx(session, jobs[k]), expected[k])):
                failures.append(k)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_programs_beside_convolution_nodes_in_one_tflite_file():
    """The delegate claims both, each program alone: program, convolution, program."""
    p = Builder(4)
    program = p.finish(*floats(p, p.binary(0, pad_top=1, pad_left=1, pad_bottom=1, pad_right=1)))
    case = make_case(5, size=SIZE, batch=1, in_channels=4, out_channels=4, groups=1, kernel_h=3, kernel_w=3, stride_h=1,
                     stride_w=1, pad_top=1, pad_left=1, pad_bottom=1, pad_right=1, dilation_h=1, dilation_w=1,
                     residual=0)
    b = TfliteBuilder()
    tensors = [b.tensor(f"t{i}", (1, *SIZE, 4)) for i in range(4)]
    tflite_node(b, write(program), tensors[:1], tensors[1:2])
    b.conv(case, *tensors[1:3])
    tflite_node(b, write(program), tensors[2:3], tensors[3:])
    given = images(program)
    case.x = truth(program, given)[0]
    got = run_tflite(open_tflite(b.finish(tensors[:1], tensors[3:])), *given)
    check(program, [case.reference()], got)


def test_a_size_that_comes_at_run_time():
    program, b = small(), TfliteBuilder()
    x, shape = b.tensor("x", (1, *SIZE, 1)), b.tensor("shape", (4,), np.zeros(4, np.int32))
    b.tensors[shape].buffer = 0  # an input
    r, y = b.tensor("r", (1, *SIZE, 1)), b.tensor("y", (1, *SIZE, 1))
    b.operator([x, shape], [r], builtin=RESHAPE)
    tflite_node(b, write(program), [r], [y])
    interpreter = open_tflite(b.finish([x, shape], [y]))
    interpreter.allocate_tensors()
    given = images(program)
    for size in (SIZE, (8, 48)):
        interpreter.set_tensor(x, given[0].reshape(1, *SIZE, 1))
        interpreter.set_tensor(shape, np.array([1, *size, 1], np.int32))
        interpreter.invoke()
        check(program, [given[0].reshape(1, 1, *size)], [interpreter.get_tensor(y).reshape(1, 1, *size)])


# ---- errors ----


def damaged():
    data = bytearray(write(small()))
    data[-5] ^= 1
    return bytes(data)


@pytest.mark.parametrize("given, message", [
    ({"data": damaged()}, "node 'net': the checksum does not match: the file is damaged"),
    ({"data": b"no program"}, "node 'net': this is no model.irstd"),
    ({"data": b""}, "node 'net': this is no model.irstd: 0 bytes"),
    ({"data": write(small())[:-64]}, "the file has .* bytes, its header says"),
    ({"version": 2}, "node 'net': version must be 1, got 2"),
    ({"height": 0}, "height and width must be in 1"),
    ({"constant": False}, "Type"),
    ({"height": 1}, "a 1x24 image leaves nothing"),
])
def test_an_onnx_file_that_cannot_be_loaded(given, message):
    with pytest.raises(Exception, match=message):
        open_onnx(onnx_file(small(), **given))


def test_an_onnx_program_that_is_no_constant():
    program = small()
    inputs = {"x": (1, 1, "h", "w")}
    nodes = [helper.make_node("Cast", ["x"], ["program"], to=2),
             helper.make_node(PROGRAM.name, ["program", "x"], ["y"], "net", domain=DOMAIN, **OPTIONS)]
    with pytest.raises(Exception, match="input program must be a constant"):
        open_onnx(onnx_model(nodes, [], inputs, {"y": inputs["x"]}))
    with pytest.raises(Exception, match="it has 1 images and 2 outputs, its program 1 and 1"):
        run_onnx(open_onnx(onnx_file(program, outputs=2)), images(program))


def test_onnx_images_that_do_not_fit():
    program = two_of_everything()
    session = open_onnx(onnx_file(program))
    x, y = images(program)
    with pytest.raises(Exception, match=r"input 2 must be \[1, 1, 16, 24\], got \[1, 1, 16, 20\]"):
        run_onnx(session, [x, y[..., :20]])
    with pytest.raises(Exception, match=r"node 'net': AveragePool_\d: a 1x24 image leaves nothing"):
        run_onnx(session, [x[:, :, :1], y[:, :, :1]])
    check(program, [x, y], run_onnx(session, [x, y]))
    with pytest.raises(Exception, match=r"input 1 must be \[1, 3, 16, 24\], got \[1, 2, 16, 24\]"):
        run_onnx(open_onnx(onnx_file(program, channels="c")), [x[:, :2], y])


@pytest.mark.parametrize("given, message", [
    ({"data": damaged()}, "irstd.Program node 'y0': the checksum does not match: the file is damaged"),
    ({"data": b"no program"}, "node 'y0': this is no model.irstd"),
    ({"version": 2}, "version must be 1, got 2"),
    ({"drop": ("height",)}, "option height is missing"),
    ({"colour": 1}, "unknown option colour"),
    ({"width": 1.5}, "option width must be an integer"),
    ({"array": np.zeros(8, np.int32)}, "input program must be uint8"),
    ({"size": (1, 24)}, "a 1x24 image leaves nothing"),
])
def test_a_tflite_file_that_cannot_be_loaded(given, message):
    with pytest.raises((RuntimeError, ValueError), match=message):
        open_tflite(tflite_file(small(), **given)).allocate_tensors()


def test_tflite_images_that_do_not_fit():
    program = two_of_everything()
    interpreter = open_tflite(tflite_file(program))
    x, y = images(program)
    with pytest.raises(RuntimeError, match=r"input 2 must be \[1, 16, 24, 1\], got \[1, 16, 20, 1\]"):
        run_tflite(interpreter, x, y[..., :20])
    with pytest.raises(RuntimeError, match=r"input 1 must be \[1, 16, 24, 3\], got \[1, 16, 24, 2\]"):
        run_tflite(open_tflite(tflite_file(program)), x[:, :2], y)


def test_an_interpreter_without_the_delegate():
    from ai_edge_litert.interpreter import Interpreter

    with pytest.raises(RuntimeError, match=r"unresolved custom op: irstd\.Program"):
        Interpreter(model_content=tflite_file(small())).allocate_tensors()


# ---- the oldest supported runtimes ----


@pytest.mark.slow
def test_onnxruntime_118(ort118, tmp_path):
    programs = [make() for make in PROGRAMS.values()]
    for i, program in enumerate(programs):
        given = {f"x{k}": x for k, x in enumerate(images(program))}
        np.savez(tmp_path / f"{i}.npz", model=np.frombuffer(onnx_file(program), np.uint8), **given)
    (tmp_path / "bad.onnx").write_bytes(onnx_file(small(), version=2))
    jobs = [(i, threads) for i in range(len(programs)) for threads in (1, 2)]
    (tmp_path / "cases.json").write_text(json.dumps(jobs))
    done = subprocess.run([ort118, "-c", OLD_ONNXRUNTIME, tmp_path, library.find("ort")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("1.18.1") and "version must be 1, got 2" in done.stdout
    for i, threads in jobs:
        want = truth(programs[i], images(programs[i]))[0]
        np.testing.assert_allclose(np.load(tmp_path / f"{i}-{threads}.npy"), want, atol=2e-6)


@pytest.mark.slow
def test_tflite_runtime_214(tflite214, tmp_path):
    programs = [make() for make in PROGRAMS.values()]
    for i, program in enumerate(programs):
        (tmp_path / f"{i}.tflite").write_bytes(tflite_file(program))
        for j, x in enumerate(images(program)):
            np.save(tmp_path / f"{i}-{j}.npy", nhwc(x))
    (tmp_path / "bad.tflite").write_bytes(tflite_file(small(), version=2))
    jobs = [(i, threads, p.inputs) for i, p in enumerate(programs) for threads in (1, 2)]
    (tmp_path / "cases.json").write_text(json.dumps(jobs))
    done = subprocess.run([tflite214, "-c", OLD_TFLITE, tmp_path, library.find("tflite")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "version must be 1, got 2" in done.stdout
    for i, threads, _ in jobs:
        want = truth(programs[i], images(programs[i]))[0]
        np.testing.assert_allclose(nchw(np.load(tmp_path / f"{i}-{threads}-out.npy")), want, atol=2e-6)
