"""The native session and engine, through the C interface, against the truth of program_truth.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from program_cases import PAD, SIZE, WINDOW, Builder, floats, small, values, write_bundle
from program_truth import run_program

from irstd_edge.bundle import BundleError
from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.program import write
from irstd_edge.runtimes import library, native
from irstd_edge.runtimes.session import open_session

pytestmark = pytest.mark.usefixtures("libraries")


def float_convolutions():
    b = Builder(3)
    plain = b.conv(0, 4, **PAD)
    return b.finish(plain, b.conv(plain, 6, (1, 5), groups=2, activation=2, pad_left=3, bias=False),
                    b.conv(plain, 4, (3, 2), stride_h=2, stride_w=3, dilation_h=2, activation=3, clamp_min=-0.5,
                           clamp_max=2.0, pad_bottom=2), b.conv(plain, 1, (1, 1), activation=4),
                    b.conv(0, 3, groups=3, activation=5, **PAD), b.conv(plain, 5, (1, 1), activation=1))


def transposed_convolutions():
    b = Builder(4)
    return b.finish(b.conv(0, 6, operator="ConvTranspose2d", groups=2, stride_h=2, stride_w=2, output_pad_h=1,
                           output_pad_w=1, **PAD),
                    b.conv(0, 4, (2, 3), operator="ConvTranspose2d", stride_h=3, dilation_w=2, activation=2),
                    b.conv(0, 1, (4, 4), operator="ConvTranspose2d", stride_h=2, stride_w=2, bias=False, **PAD))


def binary_convolutions():
    b = Builder(4)
    x = b.conv(0, 4, (1, 1), bits=8)
    wide = b.binary(x, x, out=40, **PAD)
    outs = [b.binary(wide, wide, out=40, **PAD), b.binary(wide, x, out=4, pad_value=1, **PAD),
            b.binary(wide, wide, out=4, **PAD),
            b.binary(x, out=8, groups=2, stride_h=2, stride_w=2, activation=0, **PAD),
            b.binary(wide, out=4, activation=2, clamp_min=-1.0, clamp_max=0.5, kernel=(1, 1)),
            b.binary(x, x, activation_first=0, bits=5, **PAD),
            b.binary(wide, kernel=(5, 3), pad_value=-1, dilation_h=2),
            b.binary(0, 0, bits=-1, **PAD)]
    return b.finish(*floats(b, *outs))


def maps(bits):
    """Pools, resizes, sums, joins on int16 or float32 maps."""
    b = Builder(4)
    x = b.conv(0, 4, bits=bits, **PAD)
    y = b.add("AveragePool", x, 4, bits, **WINDOW)
    outs = [y, b.add("MaxPool", x, 4, bits, kernel_h=3, kernel_w=2, stride_h=1, stride_w=2),
            b.add("AveragePool", x, 4, bits, kernel_h=4, kernel_w=3, stride_h=3, stride_w=3),
            *(b.add("Resize", y, 4, bits, scale_h=2, scale_w=2, mode=mode) for mode in range(3)),
            b.add("Resize", y, 4, bits, scale_h=3, scale_w=1, mode=1), b.add("Resize", y, 4, bits, scale_h=1, scale_w=4,
                                                                            mode=2),
            b.add("Add", (x, x), 4, bits), b.add("Concat", (x, x, x), 12, bits)]
    outs += [b.add("MaxPool", x, 4, bits, kernel_h=3, kernel_w=3, stride_h=2, stride_w=2, ceil_mode=1, **PAD),
             b.add("AveragePool", x, 4, bits, pad_left=1, count_padding=1, **WINDOW),
             b.add("Resize", y, 4, bits, scale_h=1, scale_w=2, divisor_h=2, mode=0),
             b.add("Resize", (y, x), 4, bits, mode=0, size=1)]
    if bits >= 0:
        outs.append(b.add("Resize", (y, x), 4, bits, scale_h=2, scale_w=2, mode=1))
    return b.finish(*floats(b, *outs))


def sums_and_products():
    b = Builder(4, 4)
    total = b.add("Add", (0, 1), 4, activation=2, constants={"slope": values(4)})
    mean = b.add("GlobalAveragePool", total, 4)
    gate = b.add("Activation", mean, 4, activation=4)
    grid = b.add("FixedPoint", 1, 4, 6, fraction_bits=6, bits=9)
    return b.finish(total, mean, b.add("Multiply", (total, gate), 4), b.add("Multiply", (0, 1), 4),
                    b.add("Activation", 0, 4, activation=1), b.add("Activation", 0, 4, activation=5),
                    b.add("Add", (0, 1), 4, activation=3, clamp_min=-0.25, clamp_max=0.25), *floats(b, grid),
                    *attention(b, total))


def attention(b, x):
    """One gate by pixel and one by channel, of means and largest values."""
    peak, pixel = b.add("GlobalMaxPool", x, 4), [b.add(f"Channel{kind}Pool", x, 1) for kind in ("Average", "Max")]
    return (peak, *pixel, b.add("Add", (b.add("Multiply", (x, pixel[0]), 4), peak), 4, activation=1),
            b.add("Add", (x, pixel[1]), 4), b.add("Multiply", (peak, b.add("GlobalMaxPool", pixel[1], 1)), 4))


PROGRAMS = {"float convolutions": float_convolutions, "transposed": transposed_convolutions,
            "binary convolutions": binary_convolutions, "int16 maps": lambda: maps(8), "float maps": lambda: maps(-1),
            "sums and products": sums_and_products}


def run_engine(path, program, images, threads=1):
    path.write_bytes(write(program))
    engine = native.Engine(path, images[0].shape[1:], threads)
    outputs = [np.full(shape, np.nan, np.float32) for shape in engine.output_shapes]
    call = engine.bind(list(images), outputs)
    call()
    first = [out.copy() for out in outputs]
    call()
    for a, b in zip(first, outputs, strict=True):
        np.testing.assert_array_equal(a, b)
    return outputs


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_operator(tmp_path, name, threads):
    program = PROGRAMS[name]()
    for size in (SIZE, (17, 70), (40, 33)):
        even = [s - s % 2 for s in size] if "maps" in name else size
        images = [values(t.channels, *even, steps=128) * 3 for t in program.tensors[:program.inputs]]
        found = run_engine(tmp_path / "m.irstd", program, images, threads)
        for i, (got, expected) in enumerate(zip(found, run_program(program, *images), strict=True)):
            # Where corners align PyTorch's places are products of a rounded scale; elsewhere sums differ by ulps.
            atol = 1e-4 if name == "float maps" else 3e-6
            np.testing.assert_allclose(got, expected, atol=atol, rtol=1e-6, err_msg=f"output {i} at {size}")


POOLS = [(kernel, stride, pad, ceil) for kernel in ((2, 2), (3, 3), (5, 2), (1, 4)) for ceil in (0, 1)
         for stride in ((1, 1), (2, 3), (4, 2)) for pad in ((0, 0), (kernel[0] // 2, kernel[1] // 2))]


def test_pools_are_those_of_pytorch(tmp_path):
    """Padding, ceil_mode, what an average counts; images that a window hardly fits."""
    b, calls = Builder(2), []
    x = b.add("Activation", 0, 2)
    for kernel, stride, pad, ceil in POOLS:
        a = dict(zip(("kernel_h", "kernel_w", "stride_h", "stride_w"), (*kernel, *stride), strict=True))
        a |= dict(zip(("pad_top", "pad_left", "pad_bottom", "pad_right"), pad * 2, strict=True)) | {"ceil_mode": ceil}
        b.add("MaxPool", x, 2, **a)
        calls.append(partial(F.max_pool2d, kernel_size=kernel, stride=stride, padding=pad, ceil_mode=bool(ceil)))
        for count in (0, 1):
            b.add("AveragePool", x, 2, count_padding=count, **a)
            calls.append(partial(F.avg_pool2d, kernel_size=kernel, stride=stride, padding=pad, ceil_mode=bool(ceil),
                                 count_include_pad=bool(count)))
    program = b.finish(*range(2, 2 + len(calls)))
    for size in ((5, 4), (6, 7), (13, 70), (16, 65)):
        image = values(2, *size)
        found = run_engine(tmp_path / "m.irstd", program, [image])
        for i, (y, call) in enumerate(zip(found, calls, strict=True)):
            np.testing.assert_allclose(y, call(torch.from_numpy(image)).numpy(), atol=1e-6, err_msg=f"{i} at {size}")


@pytest.mark.parametrize("mode", range(3))
def test_resizes_are_those_of_pytorch(tmp_path, mode):
    """To a size, to that of another image, by a fraction; nearest takes the same pixels, as at 2 to 82."""
    options = ({"mode": "nearest"}, *({"mode": "bilinear", "align_corners": c} for c in (False, True)))[mode]
    sizes = [(1, 1), (82, 3), (2, 94), (7, 66), (13, 64), (31, 5)]
    b, calls = Builder(2), []
    x = b.add("Activation", 0, 2)
    for size in sizes:
        b.add("Resize", x, 2, mode=mode, size=2, height=size[0], width=size[1])
        calls.append(lambda x, size=size: F.interpolate(x, size=size, **options))
    for scale, divisor in ((1, 2), (3, 2), (2, 3), (9, 4), (5, 1)):
        last = b.add("Resize", x, 2, mode=mode, scale_h=scale, divisor_h=divisor, scale_w=scale, divisor_w=divisor)
        calls.append(lambda x, f=scale / divisor: F.interpolate(x, scale_factor=f, **options))
        b.add("Resize", (0, last), 2, mode=mode, size=1)
        calls.append(lambda x, f=calls[-1]: F.interpolate(x, size=f(x).shape[2:], **options))
    program = b.finish(*range(2, 2 + len(calls)))
    for size in ((2, 2), (3, 41), (14, 65)):
        image = values(2, *size)
        found = run_engine(tmp_path / "m.irstd", program, [image])
        for i, (y, call) in enumerate(zip(found, calls, strict=True)):
            want = call(torch.from_numpy(image)[None])[0].numpy()
            np.testing.assert_allclose(y, want, atol=1e-5 * (mode > 0), err_msg=f"{i} at {size}")


def test_every_isa_gives_the_same(tmp_path):
    """In a process each, as the engine may keep its choice."""
    program = binary_convolutions()
    image = values(4, 33, 50, steps=128) * 3
    (tmp_path / "m.irstd").write_bytes(write(program))
    code = ("import sys, numpy as np; from pathlib import Path; from irstd_edge.runtimes.native import Engine\n"
            "e = Engine(Path(sys.argv[1]), (33, 50)); x = np.load(sys.argv[2])\n"
            "y = [np.empty(s, np.float32) for s in e.output_shapes]; e.bind([x], y)()\n"
            "assert e.description['isa'] == sys.argv[4], e.description; np.savez(sys.argv[3], *y)")
    np.save(tmp_path / "x.npy", image)
    expected = run_program(program, image)
    for isa in library.available_isas("native"):
        subprocess.run([sys.executable, "-c", code, tmp_path / "m.irstd", tmp_path / "x.npy", tmp_path / "y.npz", isa],
                       env=os.environ | {"IRSTD_ISA": isa}, check=True)
        with np.load(tmp_path / "y.npz") as found:
            for name, y in zip(found.files[:-1], expected, strict=False):
                np.testing.assert_array_equal(found[name], y, err_msg=f"{isa} {name}")


# The session ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "b", write(small()))


def truth(x):
    return np.stack([run_program(small(), image)[0] for image in x])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session(bundle, threads):
    session = open_session(bundle, "native", threads)
    assert session.artefact == "native" and session.runtime.startswith("irstd ")
    assert session.isa == library.selected_isa("native")
    for size in (SIZE, (64, 32), SIZE):
        x = values(3, 1, *size)
        y = session.run(x)
        assert y.shape == x.shape and y.dtype == np.float32
        np.testing.assert_allclose(y, truth(x), atol=2e-6)
        assert session.prepare(x)() is None


def test_a_prepared_call_survives_other_sizes(bundle):
    session = open_session(bundle, "native")
    call = session.prepare(values(1, 1, *SIZE))
    session.run(values(1, 1, 32, 32))
    call()
    del session
    call()


def test_any_memory_order_and_type(bundle):
    session = open_session(bundle, "native")
    x = np.random.default_rng(0).standard_normal((1, 1, SIZE[1], SIZE[0])).transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(session.run(x), session.run(np.ascontiguousarray(x, np.float32)))


def test_sizes_and_channels_that_do_not_fit(bundle, tmp_path):
    session = open_session(bundle, "native")
    x = values(1, 1, *SIZE)
    first = session.run(x)
    with pytest.raises(UnsupportedError, match=r"cannot run 17x24 images: .*Resize"):
        session.run(values(1, 1, 17, 24))
    np.testing.assert_array_equal(session.run(x), first)
    with pytest.raises(ValueError, match=r"images must be \[\(1, 16, 24\)\], got \[\(3, 16, 24\)\]"):
        session.run(values(1, 3, *SIZE))
    fixed = open_session(write_bundle(tmp_path / "f", write(small()), fixed=True), "native")
    np.testing.assert_array_equal(fixed.run(x), first)
    with pytest.raises(UnsupportedError, match=r"written for 16x24 images, cannot run 32x32; .*--input-size 32x32"):
        fixed.run(values(1, 1, 32, 32))


def test_a_damaged_file(tmp_path):
    data = write(small())
    for name, damaged in (("short", data[:100]), ("other", b"no model"), ("flip", data[:-1] + b"\x7f")):
        with pytest.raises(BundleError, match=r"model\.irstd: .*; export again"):
            open_session(write_bundle(tmp_path / name, damaged), "native")


def test_a_missing_or_broken_library(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv(library.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(MissingError, match=r"libirstd\.so: missing; IRSTD_LIBRARY_DIR"):
        open_session(bundle, "native")
    (tmp_path / "libirstd.so").write_bytes(b"no library")
    with pytest.raises(MissingError, match="cannot be loaded"):
        open_session(bundle, "native")


def test_the_library_shows_what_the_header_declares_and_nothing_else():
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    symbols = subprocess.run(["nm", "-D", "--defined-only", library.find("native")], capture_output=True, text=True,
                             check=True).stdout
    header = Path(__file__).resolve().parents[2] / "runtimes" / "native" / "include" / "irstd.h"
    declared = set(re.findall(r"^IRSTD_API [\w* ]*?(irstd_\w+)\(", header.read_text(), re.MULTILINE))
    assert {line.split()[-1] for line in symbols.splitlines()} - {"_init", "_fini"} == declared
    assert declared >= native._SIGNATURES.keys()


def test_an_isa_that_cannot_be_had(bundle, monkeypatch):
    monkeypatch.setenv("IRSTD_ISA", "abacus")
    with pytest.raises(UnsupportedError, match="IRSTD_ISA=abacus"):
        open_session(bundle, "native")


def test_the_engine_checks_what_python_checks(tmp_path):
    """Files that are wrong in one place, with a checksum that fits, past the check of the session."""
    import struct
    import zlib

    data, refused = bytearray(write(small())), 0
    path, nodes = tmp_path / "m.irstd", struct.unpack_from("<I", data, 52)[0]
    for offset in [*range(28, 64, 4), *range(64, nodes + 200, 4)]:
        for value in (0xFFFFFFFF, 0x7FFFFFF0, 7):
            changed = bytearray(data)
            struct.pack_into("<I", changed, offset, value)
            struct.pack_into("<I", changed, 24, zlib.crc32(changed[64:]))
            path.write_bytes(changed)
            try:
                engine = native.Engine(path, SIZE)
                engine.bind([values(*s) for s in engine.input_shapes],
                            [np.empty(s, np.float32) for s in engine.output_shapes])()
            except native.EngineError as e:
                assert str(e)
                refused += 1
    assert refused > 100


# irstd_bench ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bench(libraries):
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        pytest.skip("cmake is not installed")
    root = Path(__file__).resolve().parents[2]
    build = root / "build" / "native-runtimes"
    for command in ([cmake, "-S", root / "runtimes" / "native", "-B", build, "-DCMAKE_BUILD_TYPE=Release"],
                    [cmake, "--build", build, "--target", "irstd_bench"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "irstd_bench"


def run_bench(bench, *arguments, **variables):
    return subprocess.run([bench, *map(str, arguments)], capture_output=True, text=True, check=False,
                          env=os.environ | variables)


@pytest.fixture
def model(tmp_path):
    (tmp_path / 'a "model".irstd').write_bytes(write(small()))
    return tmp_path / 'a "model".irstd'


def test_the_runner(bench, model, tmp_path):
    x = values(1, *SIZE)
    x.tofile(tmp_path / "x.raw")
    done = run_bench(bench, model, "--height", 16, "--width", 24, "--input", tmp_path / "x.raw", "--output",
                     tmp_path / "y.raw", "--threads", 2, "--warmup", 0, "--runs", 3, "--json", tmp_path / "r.json",
                     "--markers")
    assert done.returncode == 0 and done.stderr == ""
    result = json.loads((tmp_path / "r.json").read_text())
    assert json.loads(done.stdout)["samples_ms"] == result["samples_ms"]
    assert result["model"] == str(model) and result["isa"] == library.selected_isa("native")
    assert (result["threads"], result["height"], result["width"]) == (2, 16, 24)
    latency, samples = result["latency_ms"], result["samples_ms"]
    assert latency["n"] == len(samples) == 3 and latency["min"] == min(samples) and latency["max"] == max(samples)
    for percent in (50, 90, 95, 99):
        assert latency[f"p{percent}"] == pytest.approx(np.percentile(samples, percent), abs=2e-6)
    assert latency["mean"] == pytest.approx(np.mean(samples), abs=2e-6)
    assert result["arena_bytes"] == result["engine"]["arena_bytes"] > 0 and result["peak_rss_bytes"] > 1 << 20
    assert [layer["op"] for layer in result["engine"]["layers"]] == [n.operator for n in small().nodes]
    y = np.fromfile(tmp_path / "y.raw", np.float32).reshape(1, *SIZE)
    np.testing.assert_allclose(y, run_program(small(), x)[0], atol=2e-6)


def test_the_runner_times_layers(bench, model):
    names = [n.name for n in small().nodes]
    result = json.loads(run_bench(bench, model, "--height", 16, "--width", 24, "--runs", 2, "--profile").stdout)
    assert len(result["layer_us"]) == len(names) and all(us > 0 for us in result["layer_us"])
    done = run_bench(bench, model, "--height", 16, "--width", 24, "--layer", "no such layer")
    assert done.returncode == 2 and "no such layer" in done.stderr


def test_the_runner_runs_long_enough_and_needs_no_input(bench, model):
    result = json.loads(run_bench(bench, model, "--height", 16, "--width", 24, "--min-seconds", 0.2, "--runs",
                                  1).stdout)
    assert sum(result["samples_ms"]) >= 190 and result["latency_ms"]["n"] > 1


@pytest.mark.parametrize("arguments, code, message", [
    ([], 2, "name a MODEL"), (["{model}"], 2, "--height"), (["{model}", "--height", "x"], 2, "whole number"),
    (["{model}", "--height", "0"], 2, "whole number"), (["{model}", "--abacus", "1"], 2, "no option"),
    (["{model}", "--runs"], 2, "value is missing"), (["{model}", "{model}"], 2, "one MODEL"),
    (["{model}", "--min-seconds", "-1"], 2, "seconds"),
    (["nowhere.irstd", "--height", "16", "--width", "16"], 5, "nowhere.irstd: cannot be read"),
    (["{text}", "--height", "16", "--width", "16"], 5, "no model.irstd"),
    (["{model}", "--height", "16", "--width", "16", "--input", "{text}"], 2, "must hold 256 float32 values"),
    (["{model}", "--height", "16", "--width", "16", "--input", "nowhere.raw"], 5, "nowhere.raw: cannot be read"),
    (["{model}", "--height", "16", "--width", "16", "--input", "a", "--input", "b"], 2, "has 1 inputs, 2 are given"),
])
def test_the_runner_says_what_is_wrong(bench, model, tmp_path, arguments, code, message):
    (tmp_path / "text").write_text("x" * 100)
    done = run_bench(bench, *(a.format(model=model, text=tmp_path / "text") for a in arguments))
    assert done.returncode == code and message in done.stderr and done.stdout == ""


def test_the_runner_without_an_instruction_set(bench, model):
    done = run_bench(bench, model, "--height", 16, "--width", 24, IRSTD_ISA="abacus")
    assert done.returncode == 3 and "IRSTD_ISA=abacus" in done.stderr


def test_no_session_has_no_plan():
    assert native._load(library.find("native")).irstd_describe_plan(None) is None
