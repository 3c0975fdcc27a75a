"""Programs for the tests of the engine: a builder, and a strategy that draws networks of binary convolutions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import kernel_truth
import numpy as np
from hypothesis import strategies as st

from irstd_edge.program import Node, Program, Tensor

SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30], np.float32)


def out_side(size: int, kernel: int, stride: int, dilation: int, pads: int) -> int:
    return (size + pads - dilation * (kernel - 1) - 1) // stride + 1


def dyadic(rng, *shape, steps=64, largest=1.0) -> np.ndarray:
    """Multiples of 1 / steps: sums of them are exact in any order."""
    return (rng.integers(-int(largest * steps), int(largest * steps) + 1, shape) / steps).astype(np.float32)


class Builder:
    """A program, node by node: :meth:`add` returns the number of the result."""

    def __init__(self, *channels: int):
        self.tensors = [Tensor(f"x{i}", c) for i, c in enumerate(channels)]
        self.nodes, self.inputs = [], len(channels)

    def add(self, operator, inputs, channels, grid=-1, constants=None, **attributes) -> int:
        self.tensors.append(Tensor(f"t{len(self.tensors)}", channels, grid))
        inputs = (inputs,) if isinstance(inputs, int) else inputs
        self.nodes.append(Node(operator, f"{operator}_{len(self.nodes)}", inputs, len(self.tensors) - 1, attributes,
                               constants or {}))
        return len(self.tensors) - 1

    def fixed(self, x: int, bits: int, width: int = 16) -> int:
        """x on the grid of 2^-bits."""
        return self.add("FixedPoint", x, self.tensors[x].channels, bits, fraction_bits=bits, bits=width)

    def conv(self, rng, x: int, out: int, kernel=(3, 3), grid=-1, groups=1, operator="Conv2d", bias=True, steps=64,
             **attributes) -> int:
        channels = self.tensors[x].channels
        shape = (channels, out // groups) if operator == "ConvTranspose2d" else (out, channels // groups)
        constants = {"weight": dyadic(rng, *shape, *kernel, steps=steps)}
        if bias:
            constants["bias"] = dyadic(rng, out, steps=steps)
        if attributes.get("activation") == 2:
            constants["slope"] = dyadic(rng, out, steps=16)
        return self.add(operator, x, out, grid, constants, in_channels=channels, out_channels=out, kernel_h=kernel[0],
                        kernel_w=kernel[1], groups=groups, **attributes)

    def binary(self, rng, x: int, out: int, residual=None, kernel=(3, 3), grid=8, groups=1, constants=None,
               mode=1, **attributes) -> int:
        """By default what the int16 kernels take: dyadic constants, RPReLU."""
        channels = self.tensors[x].channels
        signs = np.where(rng.random((out, channels // groups, *kernel)) < 0.5, -1, 1)
        unit = 2.0**-max(grid, 0)
        made = {"weight": kernel_truth.pack(signs), "threshold": dyadic(rng, channels, steps=16),
                "scale": (rng.integers(-6, 7, out) * unit).astype(np.float32),
                "bias": (rng.integers(-200, 201, out) * unit).astype(np.float32)}
        attributes = {"activation": 1, "pad_value": 0} | attributes
        if attributes["activation"] == 1:
            shifts = rng.integers(-200, 201, (2, out)) * unit
            made["activation_parameters"] = np.float32([shifts[0], rng.integers(0, 128, out) / 128, shifts[1]])
        inputs = (x,) if residual is None else (x, residual)
        return self.add("BinaryConv2d", inputs, out, grid, made | (constants or {}), version=1, bit_order=1,
                        in_channels=channels, out_channels=out, kernel_h=kernel[0], kernel_w=kernel[1], groups=groups,
                        fraction_bits=grid, residual=0 if residual is None else mode, **attributes)

    def quant(self, rng, x: int | tuple[int, ...], out: int, kernel=(3, 3), bits=(4, 4), groups=1, constants=None,
              **attributes) -> int:
        """``bits`` of weights and activations; several ``x`` are read as one. The largest weights are there."""
        inputs = (x,) if isinstance(x, int) else x
        channels = sum(self.tensors[i].channels for i in inputs)
        low, high = (-1, 1) if bits[0] == 1 else (-(2 ** (bits[0] - 1)), 2 ** (bits[0] - 1) - 1)
        weight = rng.integers(low, high + 1, (out, *kernel, channels // groups))
        weight = np.where(rng.random(weight.shape) < 0.2, rng.choice([low, high], weight.shape), weight)
        weight = np.where(weight == 0, 1, weight) if bits[0] == 1 else weight
        digits = (weight > 0)[..., None] if bits[0] == 1 else weight[..., None] >> np.arange(bits[0]) & 1
        made = {"weight": np.packbits(digits.reshape(out, -1).astype(np.uint8), axis=1, bitorder="little"),
                "scale": rng.uniform(0.001, 0.02, out).astype(np.float32),
                "bias": rng.normal(0, 0.5, out).astype(np.float32)}
        given = {"inverse_step": 2.0 ** (bits[1] - 2) * 1.1} | attributes
        return self.add("QuantConv2d", inputs, out, -1, made | (constants or {}), version=1, in_channels=channels,
                        out_channels=out, kernel_h=kernel[0], kernel_w=kernel[1], groups=groups, weight_bits=bits[0],
                        activation_bits=bits[1], **given)

    def finish(self, *outputs: int) -> Program:
        """int16 results become outputs through float copies."""
        outputs = tuple(self.add("Activation", n, self.tensors[n].channels) if self.tensors[n].fraction_bits >= 0 else n
                        for n in outputs)
        return Program(tuple(self.tensors), tuple(self.nodes), self.inputs, outputs)


SAME = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}


def side(g: dict, axis: str, size: int) -> int:
    """Height (``h``) or width (``w``) of what a window of this geometry makes of an image."""
    pads = g["pad_top"] + g["pad_bottom"] if axis == "h" else g["pad_left"] + g["pad_right"]
    return out_side(size, g[f"kernel_{axis}"], g[f"stride_{axis}"], g[f"dilation_{axis}"], pads)


def geometry(draw, size: tuple[int, int]) -> dict:
    """Kernel, stride, dilation and padding of a convolution that fits an image."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (3, 1), (1, 5), (2, 3), (5, 2)]))
    some = st.sampled_from([1, 1, 1, 2, 3])
    g = {"kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": draw(some), "stride_w": draw(some),
         "dilation_h": draw(some), "dilation_w": draw(some)}
    if draw(st.booleans()):
        pads = [g["dilation_h"] * (kernel[0] - 1) // 2, g["dilation_w"] * (kernel[1] - 1) // 2] * 2
    else:
        pads = [draw(st.integers(0, 3)) for _ in range(4)]
    g |= dict(zip(("pad_top", "pad_left", "pad_bottom", "pad_right"), pads, strict=True))
    for axis, n in zip("hw", size, strict=True):
        if side(g, axis, n) < 1:
            g[f"kernel_{axis}"] = g[f"dilation_{axis}"] = 1
    return g


class _Network:
    """Draws binary layers behind each other; sizes of the tensors are known."""

    WORK = 1_500_000  # multiply-accumulates of a layer, about

    def __init__(self, draw):
        self.draw = draw
        channels = draw(st.integers(1, 70))
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.height = draw(st.integers(1, 10))
        self.width = draw(st.one_of(st.integers(1, 20), st.integers(60, 68), st.integers(124, 140),
                                    st.integers(1, 140)))
        self.builder = Builder(channels, 2)
        self.outputs: list[int] = []
        self.size = (self.height, self.width)
        self.x = 0
        if draw(st.booleans()):
            self.x = self.builder.fixed(0, draw(st.sampled_from([0, 4, 8, 15])), draw(st.sampled_from([16, 16, 9])))

    def numbers(self, kind: str, count: int, bits: int, size: float) -> np.ndarray:
        """Constants on the grid of 2^-bits, of any value, or with special ones among them."""
        if kind == "grid":
            return (self.rng.integers(-int(size), int(size) + 1, count) * 2.0**-bits).astype(np.float32)
        values = (self.rng.normal(0, size, count) * 2.0**-bits).astype(np.float32)
        if kind == "special":
            some = self.rng.random(count) < 0.3
            values[some] = self.rng.choice(np.append(SPECIAL, np.float32([3e38, -3e38, 70000])), int(some.sum()))
        return values

    def kind(self) -> str:
        return "grid" if self.easy else self.draw(st.sampled_from(["grid", "grid", "grid", "any", "special"]))

    def geometry(self) -> dict:
        return geometry(self.draw, self.size)

    def residual(self, out: int, grid: int, g: dict, size: tuple[int, int]) -> int:
        """x itself where it fits, else a tensor made from the second input by a layer of the same geometry."""
        channels = self.builder.tensors[self.x].channels
        fits = size == self.size and (out % channels == 0 or channels % out == 0)
        fits &= not self.easy or (self.builder.tensors[self.x].fraction_bits == grid and channels <= 2 * out)
        if fits and self.draw(st.booleans()):
            return self.x
        divisors = [d for d in range(1, out + 1) if out % d == 0]
        count = self.draw(st.sampled_from([out, out, 2 * out, *([] if self.easy else [3 * out, 4 * out]), *divisors]))
        kind = self.draw(st.sampled_from(["same", "same", *([] if self.easy else ["float", "other"])]))
        bits = {"same": grid, "float": -1, "other": 11}[kind]
        weight = np.zeros((count, 2, g["kernel_h"], g["kernel_w"]), np.float32)
        taps = weight.reshape(count, -1)
        taps[np.arange(count), self.rng.integers(0, taps.shape[1], count)] = dyadic(self.rng, count, steps=16)
        source = 1  # of the images' size: it is brought to that of x as the layers before did
        for before in self.history:
            one = np.zeros((2, 1, before["kernel_h"], before["kernel_w"]), np.float32)
            one[:, 0, 0, 0] = 1
            source = self.builder.add("Conv2d", source, 2, -1, {"weight": one}, in_channels=2, out_channels=2, groups=2,
                                      **before)
        return self.builder.add("Conv2d", source, count, bits, {"weight": weight}, in_channels=2, out_channels=count,
                                **g)

    def layer(self, size_limit: int = 70) -> int:
        draw, rng, channels = self.draw, self.rng, self.builder.tensors[self.x].channels
        g = self.geometry()
        self.easy = draw(st.booleans())  # as the int16 kernels take it
        groups = draw(st.sampled_from([1, 1, *(d for d in range(1, channels + 1) if channels % d == 0)]))
        most = max(1, self.WORK * groups // (channels * g["kernel_h"] * g["kernel_w"] * self.size[0] * self.size[1]))
        out = groups * draw(st.integers(1, max(1, min(size_limit, most) // groups)))
        grid = draw(st.sampled_from([8, 4, 15] if self.easy else [-1, 0, 4, 8, 8, 15]))
        bits, kinds = max(grid, 0), [self.kind() for _ in range(5)]
        a = {"groups": groups, "pad_value": draw(st.sampled_from([0, 0, 1, -1])), "grid": grid,
             "activation": draw(st.sampled_from([0, 1, 1] if self.easy else [0, 1, 1, 2])),
             "activation_first": draw(st.sampled_from([1] if self.easy else [1, 1, 0]))}
        if a["activation"] == 2:
            low, high = sorted(self.numbers("any", 2, bits, 300).tolist())
            a["clamp_min"] = draw(st.sampled_from([low, -np.inf]))
            a["clamp_max"] = draw(st.sampled_from([high, np.inf]))
        x_bits = self.builder.tensors[self.x].fraction_bits
        largest = min(8, max(1, 24000 * groups // (channels * g["kernel_h"] * g["kernel_w"]))) if self.easy else 8
        constants = {"threshold": self.numbers(kinds[0], channels, 6 if x_bits < 0 else x_bits, 60),
                     "scale": self.numbers(
                         kinds[1], out, bits + draw(st.sampled_from([0, 0, 2, 5])), largest),
                     "bias": self.numbers(
                         kinds[2], out, bits, draw(st.sampled_from([100, 1000] if self.easy else [100, 1000, 40000])))}
        if a["activation"] == 1:
            slope = {"grid": lambda: rng.integers(-127, 128, out) / 128, "any": lambda: rng.normal(0, 1, out),
                     "special": lambda: rng.choice(np.append(SPECIAL, [1.0, 0.5, -0.25, 255 / 256]), out)}[kinds[3]]()
            shifts = [self.numbers(kinds[4], out, bits, 200) for _ in range(2)]
            constants["activation_parameters"] = np.float32([shifts[0], slope, shifts[1]])
        size = (side(g, "h", self.size[0]), side(g, "w", self.size[1]))
        mode = draw(st.sampled_from([0, 1, 1] if self.easy else [0, 0, 1, 1, 2]))
        residual = self.residual(out, grid, g, size) if mode else None
        kernel = (g.pop("kernel_h"), g.pop("kernel_w"))
        y = self.builder.binary(rng, self.x, out, residual, kernel, constants=constants, mode=mode, **a, **g)
        self.history.append({"kernel_h": kernel[0], "kernel_w": kernel[1], **g})
        self.x, self.size = y, size
        return y

    def build(self) -> tuple[Program, list[np.ndarray]]:
        self.history: list[dict] = []
        for last in [False] * self.draw(st.sampled_from([0, 0, 1, 1, 2])) + [True]:
            y = self.layer()
            use = "read" if last else self.draw(st.sampled_from(["signs", "signs", "signs", "read", "twice"]))
            if use == "read":
                self.outputs.append(y)
            elif use == "twice":
                self.outputs.append(self.builder.binary(self.rng, y, self.draw(st.integers(1, 9)), kernel=(1, 1)))
        return self.builder.finish(*self.outputs), self.images()

    def images(self) -> list[np.ndarray]:
        shape = (self.builder.tensors[0].channels, self.height, self.width)
        kind = self.draw(st.sampled_from(["coarse", "normal", "huge"]))
        x = dyadic(self.rng, *shape) if kind == "coarse" else self.rng.normal(0, 1, shape).astype(np.float32)
        if kind == "huge":
            x *= 3000
            some = self.rng.random(shape) < 0.05
            x[some] = self.rng.choice(SPECIAL, int(some.sum()))
        r = (self.rng.normal(0, self.draw(st.sampled_from([1, 1, 300])), (2, *shape[1:]))).astype(np.float32)
        return [x, r]


@st.composite
def binary_networks(draw) -> tuple[Program, list[np.ndarray]]:
    """One to three binary layers and the images to run them on."""
    return _Network(draw).build()


@dataclass(frozen=True)
class _Known:
    """What is known of a tensor: its size, and where its values are exact in float32 their grid and largest size."""

    height: int
    width: int
    fraction: int = 0
    largest: float = 0.0
    exact: bool = True

    def grown(self, bits: int, largest: float, height=None, width=None, exact=True) -> _Known:
        fraction = self.fraction + bits
        fits = fraction + np.log2(max(largest, 1)) <= 21
        return _Known(height or self.height, width or self.width, fraction, largest, self.exact and exact and fits)


class _Graph:
    """Draws nodes that read any tensors before them. int16 is given where the exact result is known."""

    ELEMENTS = 60_000  # of a tensor, at most

    def __init__(self, draw):
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        height = draw(st.one_of(st.just(1), st.integers(1, 24)))
        width = draw(st.one_of(st.just(1), st.integers(1, 20), st.integers(60, 70), st.integers(1, 140)))
        self.builder = Builder(*draw(st.lists(st.integers(1, 8), min_size=1, max_size=3)))
        self.known = [_Known(height, width, 4, 2.0) for _ in self.builder.tensors]
        self.read: set[int] = set()
        self.tolerance = 1e-5

    def pick(self, fits=lambda number: True) -> int | None:
        numbers = [n for n in range(len(self.known)) if fits(n)]
        return numbers[-1 - self.draw(st.integers(0, len(numbers) - 1))] if numbers else None

    def channels(self, number: int) -> int:
        return self.builder.tensors[number].channels

    def type(self, number: int) -> int:
        return self.builder.tensors[number].fraction_bits

    def grid(self, known: _Known) -> int:
        return self.draw(st.sampled_from([-1, 8, 8, 4, 12])) if known.exact else -1

    def put(self, known: _Known, inputs, add) -> None:
        """The node that `add` makes for a grid."""
        if known.height * known.width * 8 > self.ELEMENTS or min(known.height, known.width) < 1:
            return
        grid = self.grid(known)
        number = add(grid)
        self.read |= set(inputs)
        if self.type(number) >= 0:
            grid = self.type(number)
            known = replace(known, fraction=min(known.fraction, grid), largest=min(known.largest, 2.0 ** (15 - grid)))
        self.known.append(known)

    def activation(self, known: _Known, kinds=(0, 0, 1, 2, 3, 4, 5)) -> tuple[_Known, dict]:
        kind = self.draw(st.sampled_from(kinds))
        if kind == 3:
            known = replace(known, largest=max(known.largest, 1.5))
            return known, {"activation": 3, "clamp_min": -0.75, "clamp_max": 1.5}
        return known.grown(4 * (kind == 2), known.largest, exact=kind < 4), {"activation": kind}

    def slope(self, attributes: dict, channels: int) -> dict:
        return {"slope": dyadic(self.rng, channels, steps=16)} if attributes.get("activation") == 2 else {}

    def convolution(self, transposed: bool) -> None:
        draw, x = self.draw, self.pick()
        channels, known = self.channels(x), self.known[x]
        some, kernels = st.sampled_from([1, 1, 2, 3]), st.sampled_from([1, 1, 2, 3, 3, 5])
        groups = draw(st.sampled_from([1, channels, *(d for d in range(1, channels + 1) if channels % d == 0)]))
        out = groups * draw(st.integers(1, max(1, 12 // groups)))
        a, sides, kernel = {}, [], (draw(kernels), draw(kernels))
        for i, (axis, size, before, after) in enumerate((("h", known.height, "pad_top", "pad_bottom"),
                                                         ("w", known.width, "pad_left", "pad_right"))):
            a |= {f"stride_{axis}": draw(some), f"dilation_{axis}": draw(some), before: draw(st.integers(0, 3)),
                  after: draw(st.integers(0, 3))}
            stride, dilation, pads = a[f"stride_{axis}"], a[f"dilation_{axis}"], a[before] + a[after]
            if transposed:
                a[f"output_pad_{axis}"] = draw(st.integers(0, stride - 1))
                sides.append((size - 1) * stride - pads + dilation * (kernel[i] - 1) + a[f"output_pad_{axis}"] + 1)
            else:
                sides.append(out_side(size, kernel[i], stride, dilation, pads))
        taps = channels // groups * kernel[0] * kernel[1]
        made, activation = self.activation(known.grown(3, known.largest * taps + 1, *(max(s, 0) for s in sides)))
        if min(sides) < 1:
            return
        before = len(self.known)
        self.put(made, [x], lambda grid: self.builder.conv(
            self.rng, x, out, kernel, grid, groups, "ConvTranspose2d" if transposed else "Conv2d", draw(st.booleans()),
            8, **a, **activation))
        if len(self.known) > before and self.type(x) == self.type(before) == -1 and min(channels, out) >= 8 * groups:
            self.known[before] = replace(self.known[before], exact=False)  # Winograd's points have thirds

    def pool(self) -> None:
        draw, x = self.draw, self.pick()
        known, operator = self.known[x], draw(st.sampled_from(["AveragePool", "MaxPool"]))
        size, average = (known.height, known.width), operator == "AveragePool"
        a, kernel, beyond = {}, [], draw(st.booleans())  # the image
        for axis, n, before, after in (("h", size[0], "top", "bottom"), ("w", size[1], "left", "right")):
            k = draw(st.sampled_from([2, 2, *range(1, 6)]))
            kernel.append(k if beyond else min(k, n))
            a |= {f"kernel_{axis}": kernel[-1], f"stride_{axis}": draw(st.sampled_from([kernel[-1], 1, 2, 3]))}
            a |= {f"pad_{p}": draw(st.integers(0, k - 1)) if beyond else 0 for p in (before, after)}
        if beyond:
            a["ceil_mode"] = draw(st.integers(0, 1))
        if beyond and average:
            a["count_padding"] = draw(st.integers(0, 1))
        sides = [self.windows(n, a, *names) for n, names in zip(size, (("h", "top", "bottom"), ("w", "left", "right")),
                                                                strict=True)]
        count = kernel[0] * kernel[1] if average else 1
        made = known.grown(int(np.ceil(np.log2(count))), known.largest, *sides, exact=not (beyond and average))
        if min(sides) > 0:
            self.share(made, count, x, lambda grid: self.builder.add(operator, x, self.channels(x), grid, **a))

    @staticmethod
    def windows(size: int, a: dict, axis: str, before: str, after: str) -> int:
        """How many windows of a pool there are, counted one by one."""
        kernel, stride = a[f"kernel_{axis}"], a[f"stride_{axis}"]
        start, end, count = -a[f"pad_{before}"], size + a[f"pad_{after}"], 0
        while start + kernel <= end or (a.get("ceil_mode") and start < size and start - stride + kernel < end):
            start, count = start + stride, count + 1
        return count

    def share(self, known: _Known, count: int, x: int, add) -> None:
        """A mean of `count` values: where that is no power of two it is exact only after it is rounded to a grid."""
        before = len(self.known)
        self.put(known, [x], add)
        if len(self.known) > before and count & count - 1 and self.type(before) < 0:
            self.known[before] = replace(self.known[before], exact=False)

    def mean(self) -> None:
        x = self.pick()
        known = self.known[x]
        count = known.height * known.width
        self.share(known.grown(int(np.ceil(np.log2(count))), known.largest, 1, 1), count, x,
                   lambda grid: self.builder.add("GlobalAveragePool", x, self.channels(x), grid))

    def peak(self) -> None:
        x = self.pick()
        self.put(self.known[x].grown(0, self.known[x].largest, 1, 1), [x],
                 lambda grid: self.builder.add("GlobalMaxPool", x, self.channels(x), grid))

    def channel_pool(self, average: bool) -> None:
        x = self.pick()
        count = self.channels(x) if average else 1
        made = self.known[x].grown(int(np.ceil(np.log2(count))), self.known[x].largest)
        self.share(made, count, x,
                   lambda grid: self.builder.add(f"Channel{'Average' if average else 'Max'}Pool", x, 1, grid))

    def resize(self) -> None:
        draw, x = self.draw, self.pick()
        known, mode = self.known[x], draw(st.sampled_from([0, 1, 1, 2]))
        a, sides = {"mode": mode}, []
        whole = draw(st.booleans())
        for axis, size in (("h", known.height), ("w", known.width)):
            scale, divisor = draw(st.integers(1, 4)), 1 if whole else draw(st.integers(1, 4))
            a |= {f"scale_{axis}": scale, f"divisor_{axis}": divisor}
            sides.append(size * scale // divisor)
        if whole and draw(st.booleans()):
            a, sides = a | {"scale_h": 2, "scale_w": 2}, [2 * known.height, 2 * known.width]
        exact = mode == 0 or (mode == 1 and whole and 3 not in (a["scale_h"], a["scale_w"]))
        if not exact:
            self.tolerance = 1e-4  # places are products of a rounded scale
        made = known.grown(6 * (mode == 1), known.largest, *sides, exact)
        if min(sides) < 1:
            return
        inputs = [x]
        like = (made.height, made.width, self.channels(x))
        other = self.pick(lambda n: (self.known[n].height, self.known[n].width, self.channels(n)) == like)
        if other is not None and draw(st.booleans()):
            inputs.append(other)
            wider = max(made.fraction, self.known[other].fraction) - made.fraction
            made = made.grown(wider, made.largest + self.known[other].largest, exact=self.known[other].exact)
        self.put(made, inputs, lambda grid: self.builder.add("Resize", tuple(inputs), self.channels(x), grid, **a))

    def resize_to(self) -> None:
        """To the size of another tensor, or to a given one."""
        draw, x, mode = self.draw, self.pick(), self.draw(st.sampled_from([0, 1, 2]))
        known, inputs, a = self.known[x], [x], {"mode": mode, "size": 2}
        sides = draw(st.integers(1, 40)), draw(st.integers(1, 150))
        if draw(st.booleans()):
            inputs.append(self.pick())
            sides = self.known[inputs[1]].height, self.known[inputs[1]].width
            a["size"] = 1
        else:
            a |= {"height": sides[0], "width": sides[1]}
        if mode:
            self.tolerance = 1e-4
        self.put(known.grown(0, known.largest, *sides, exact=mode == 0), inputs[:1],
                 lambda grid: self.builder.add("Resize", tuple(inputs), self.channels(x), grid, **a))

    def pair(self, product: bool) -> None:
        """The second may be one channel, one pixel, or both."""
        a = self.pick()
        x = self.known[a]
        b = self.pick(lambda n: self.channels(n) in (1, self.channels(a)) and (
            (self.known[n].height, self.known[n].width) in ((x.height, x.width), (1, 1))))
        y = self.known[b]
        if product:
            made = x.grown(y.fraction, x.largest * y.largest, exact=y.exact)
            self.put(made, [a, b], lambda grid: self.builder.add("Multiply", (a, b), self.channels(a), grid))
            return
        made = x.grown(max(x.fraction, y.fraction) - x.fraction, x.largest + y.largest, exact=y.exact)
        made, activation = self.activation(made)
        self.put(made, [a, b], lambda grid: self.builder.add("Add", (a, b), self.channels(a), grid,
                                                             self.slope(activation, self.channels(a)), **activation))

    def unary(self) -> None:
        x = self.pick()
        made, activation = self.activation(self.known[x])
        self.put(made, [x], lambda grid: self.builder.add("Activation", x, self.channels(x), grid,
                                                          self.slope(activation, self.channels(x)), **activation))

    def fixed(self) -> None:
        x = self.pick(lambda n: self.type(n) < 0 and self.known[n].exact)
        if x is not None:
            bits, width = self.draw(st.sampled_from([4, 8, 15])), self.draw(st.sampled_from([16, 16, 7]))
            self.put(self.known[x], [x], lambda _: self.builder.fixed(x, bits, width))

    def concat(self) -> None:
        a = self.pick()
        like = (self.known[a].height, self.known[a].width, self.type(a))
        alike = [n for n in range(len(self.known)) if (self.known[n].height, self.known[n].width, self.type(n)) == like]
        inputs = [a, *self.draw(st.lists(st.sampled_from(alike), max_size=4))]
        total = sum(map(self.channels, inputs))
        if total > 24:
            return
        made = max((self.known[n] for n in inputs), key=lambda k: k.fraction)
        made = replace(made, largest=max(self.known[n].largest for n in inputs),
                       exact=all(self.known[n].exact for n in inputs))
        self.builder.add("Concat", tuple(inputs), total, like[2])
        self.read |= set(inputs)
        self.known.append(made)

    def slice(self) -> None:
        x = self.pick()
        first = self.draw(st.integers(0, self.channels(x) - 1))
        self.builder.add("Slice", x, self.draw(st.integers(1, self.channels(x) - first)), self.type(x), first=first)
        self.read.add(x)
        self.known.append(self.known[x])

    def binary(self) -> None:
        x = self.pick(lambda n: self.known[n].exact)
        known = self.known[x]
        r = x if self.draw(st.booleans()) else None
        made = replace(known, fraction=8, largest=127.0)
        out = self.draw(st.integers(1, 9)) if r is None else self.channels(x) * self.draw(st.integers(1, 2))
        self.builder.binary(self.rng, x, out, r, **SAME)
        self.read |= {x} if r is None else {x, r}
        self.known.append(made)

    def build(self) -> tuple[Program, list[np.ndarray], list[float]]:
        kinds = {"conv": lambda: self.convolution(False), "transposed": lambda: self.convolution(True),
                 "pool": self.pool, "mean": self.mean, "peak": self.peak,
                 "channel mean": lambda: self.channel_pool(True), "channel peak": lambda: self.channel_pool(False),
                 "resize": self.resize, "resize to": self.resize_to, "add": lambda: self.pair(False),
                 "multiply": lambda: self.pair(True), "unary": self.unary, "fixed": self.fixed, "concat": self.concat,
                 "slice": self.slice, "binary": self.binary}
        for _ in range(self.draw(st.integers(1, 10))):
            kinds[self.draw(st.sampled_from(list(kinds)))]()
        if len(self.known) == self.builder.inputs:
            self.unary()
        made = range(self.builder.inputs, len(self.known))
        outputs = [n for n in made if n not in self.read or self.draw(st.integers(0, 4)) == 0]
        images = [dyadic(self.rng, self.channels(n), self.known[n].height, self.known[n].width, steps=16, largest=2)
                  for n in range(self.builder.inputs)]
        exact = [self.known[n].exact for n in outputs]
        return self.builder.finish(*outputs), images, [0.0 if e else self.tolerance for e in exact]


@st.composite
def graphs(draw) -> tuple[Program, list[np.ndarray], list[float]]:
    """A network of any operators, the images to run it on, and what each output may be off, of its largest value."""
    return _Graph(draw).build()


# Convolutions of floats ----------------------------------------------------------------------------------------------


def normal(rng, *shape) -> np.ndarray:
    """Weights of unit gain, so that layers keep the size of their values."""
    return (rng.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


class _FloatNetwork:
    """Draws float convolutions of every kind behind each other, with sums and joins that fold into them; some read
    int16."""

    KINDS = ("pointwise", "depthwise", "dense", "grouped", "any", "transposed")

    def __init__(self, draw):
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        width = draw(st.one_of(st.integers(1, 20), st.integers(60, 70), st.integers(1, 150)))
        self.size = (draw(st.integers(1, 14)), width)
        self.builder = Builder(draw(st.integers(1, 3)))
        self.image = self.rng.normal(0, 1, (self.builder.tensors[0].channels, *self.size)).astype(np.float32)
        self.x, self.like = 0, []  # the last result, and those of its size

    def conv(self, x: int, out: int, kernel, groups=1, operator="Conv2d", **attributes) -> int:
        channels = self.builder.tensors[x].channels
        shape = (channels, out // groups) if operator == "ConvTranspose2d" else (out, channels // groups)
        constants = {"weight": normal(self.rng, *shape, *kernel)}
        if self.draw(st.booleans()):
            constants["bias"] = normal(self.rng, out)
        activation = self.activation(out, constants)
        return self.builder.add(operator, x, out, -1, constants, in_channels=channels, out_channels=out,
                                kernel_h=kernel[0], kernel_w=kernel[1], groups=groups, **activation, **attributes)

    def activation(self, channels: int, constants: dict) -> dict:
        kind = self.draw(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5]))
        if kind == 2:
            constants["slope"] = normal(self.rng, channels)
        return {"activation": kind} | ({"clamp_min": -0.5, "clamp_max": 0.75} if kind == 3 else {})

    def width(self) -> int:
        return self.draw(st.sampled_from([1, 2, 3, 5, 8, 9, 16, 19]))

    def layer(self) -> None:
        draw, x, kinds = self.draw, self.x, self.KINDS
        fixed = self.size == self.image.shape[1:] and draw(st.booleans())
        if fixed:
            x = self.builder.fixed(0, 8)  # of the image, which is exact: a sum may be rounded to the other neighbour
            kinds = ("pointwise", *kinds, "pointwise")
        channels, kind = self.builder.tensors[x].channels, draw(st.sampled_from(kinds))
        kernel, g, groups, out = (3, 3), {f"{n}_{a}": 1 for n in ("stride", "dilation") for a in "hw"}, 1, self.width()
        if fixed or draw(st.booleans()):
            out = self.builder.tensors[self.x].channels  # so that the two can be added
        if kind == "pointwise":
            kernel = (1, 1)
        elif kind == "depthwise":
            groups = out = channels
            kernel = draw(st.sampled_from([(3, 3), (3, 3), (1, 1), (5, 5), (1, 3)]))
        elif kind == "grouped":
            groups = draw(st.sampled_from([d for d in range(1, channels + 1) if channels % d == 0]))
            out = groups * draw(st.integers(1, 9))
        if kind in ("depthwise", "grouped", "any", "transposed"):
            for axis in "hw":
                g |= {f"stride_{axis}": draw(st.sampled_from([1, 1, 2, 3])),
                      f"dilation_{axis}": draw(st.sampled_from([1, 1, 2, 8]))}
        if kind in ("any", "transposed"):
            kernel = draw(st.sampled_from([(1, 1), (2, 2), (3, 3), (4, 4), (3, 5), (1, 7)]))
        pads = [g["dilation_h"] * (kernel[0] - 1) // 2, g["dilation_w"] * (kernel[1] - 1) // 2] * 2
        if draw(st.integers(0, 3)) == 0:
            pads = [draw(st.integers(0, 3)) for _ in pads]
        g |= dict(zip(("pad_top", "pad_left", "pad_bottom", "pad_right"), pads, strict=True))
        around = pads[0] + pads[2], pads[1] + pads[3]
        if kind == "transposed":
            g |= {f"output_pad_{a}": draw(st.integers(0, g[f"stride_{a}"] - 1)) for a in "hw"}
            size = tuple((n - 1) * g[f"stride_{a}"] - p + g[f"dilation_{a}"] * (k - 1) + g[f"output_pad_{a}"] + 1
                         for n, a, p, k in zip(self.size, "hw", around, kernel, strict=True))
        else:
            size = tuple(out_side(n, k, g[f"stride_{a}"], g[f"dilation_{a}"], p)
                         for n, a, p, k in zip(self.size, "hw", around, kernel, strict=True))
        if min(size) < 1 or size[0] * size[1] * out > 60_000:
            return
        y = self.conv(x, out, kernel, groups, "ConvTranspose2d" if kind == "transposed" else "Conv2d", **g)
        self.like = [*self.like, y] if size == self.size else [y]
        self.size, self.x = size, y

    def join(self) -> None:
        """A sum with a result of the same shape, or a concatenation with some of the same size."""
        channels = [self.builder.tensors[n].channels for n in self.like]
        other = [n for n, c in zip(self.like[:-1], channels, strict=False) if c == channels[-1]]
        if other and self.draw(st.booleans()):
            constants = {}
            activation = self.activation(channels[-1], constants)
            pair = (self.x, self.draw(st.sampled_from(other)))
            pair = pair if self.draw(st.booleans()) else pair[::-1]
            self.x = self.builder.add("Add", pair, channels[-1], -1, constants, **activation)
        elif len(self.like) > 1:
            parts = tuple(self.draw(st.lists(st.sampled_from(self.like), min_size=1, max_size=4)))
            total = sum(self.builder.tensors[n].channels for n in parts)
            if total > 40:
                return
            self.x = self.builder.add("Concat", parts, total)
        self.like.append(self.x)

    def build(self) -> tuple[Program, list[np.ndarray]]:
        self.x = self.conv(0, self.width(), (3, 3), **SAME)
        self.like = [self.x]
        for _ in range(self.draw(st.integers(1, 6))):
            self.layer()
            if self.draw(st.booleans()):
                self.join()
        outputs = {self.x, self.draw(st.sampled_from(self.like))}
        return self.builder.finish(*sorted(outputs)), [self.image]


@st.composite
def float_networks(draw) -> tuple[Program, list[np.ndarray]]:
    """A network of float convolutions, sums and joins, and the image to run it on."""
    return _FloatNetwork(draw).build()


QUANT_WORK = 400_000  # multiply-accumulates of a quantised layer, about


def _quantiser(draw) -> tuple[tuple[int, int], dict]:
    bits = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    signed = bits[1] > 1 and draw(st.booleans())
    low, high = (-(2 ** (bits[1] - 1)), 2 ** (bits[1] - 1) - 1) if signed else (0, 2 ** bits[1] - 1)
    zero = draw(st.one_of(st.just(0), st.integers(low, high)))
    step = draw(st.sampled_from([2.0, 2.0 ** (bits[1] - 2), 0.37 * 2.0 ** bits[1], 2.0**-60, 2.0**60]))
    return bits, {"activation_signed": int(signed), "zero_point": zero, "inverse_step": float(np.float32(step))}


@st.composite
def quant_networks(draw) -> tuple[Program, list[np.ndarray]]:
    """Quantised layers behind each other, with readers of several kinds between them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = (draw(st.integers(1, 9)), draw(st.one_of(st.integers(1, 20), st.integers(30, 36), st.integers(60, 70))))
    b = Builder(draw(st.integers(1, 40)))
    x, outputs = 0, []
    images = [(rng.normal(0, 2, (b.tensors[0].channels, *size))).astype(np.float32)]
    for _ in range(draw(st.integers(1, 3))):
        before = draw(st.sampled_from(["", "", "copy", "fixed", "pool", "two", "three"]))
        inputs = x
        if before == "copy":
            inputs = b.add("Activation", x, b.tensors[x].channels, activation=1)
        elif before == "fixed" and b.tensors[x].fraction_bits < 0:
            inputs = b.fixed(x, 8)
        elif before == "pool" and min(size) > 1:
            kernel = [draw(st.integers(1, min(3, n))) for n in size]
            strides = [draw(st.integers(1, 2)) for _ in size]
            inputs = b.add("MaxPool", x, b.tensors[x].channels, kernel_h=kernel[0], kernel_w=kernel[1],
                           stride_h=strides[0], stride_w=strides[1])
            size = tuple((n - k) // step + 1 for n, k, step in zip(size, kernel, strides, strict=True))
        elif before in ("two", "three"):
            inputs = (*(b.add("Activation", x, b.tensors[x].channels, activation=1)
                        for _ in range(1 if before == "two" else 2)), x)
        channels = sum(b.tensors[i].channels for i in (inputs if isinstance(inputs, tuple) else (inputs,)))
        g = geometry(draw, size)
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        groups = draw(st.sampled_from([1, 1, 1, *divisors])) if isinstance(inputs, int) else 1
        most = max(1, QUANT_WORK // (channels // groups * g["kernel_h"] * g["kernel_w"] * size[0] * size[1]))
        out = groups * draw(st.integers(1, max(1, min(40, most) // groups)))
        bits, a = _quantiser(draw)
        if draw(st.booleans()):
            a |= {"clamp_min": 0.0, "clamp_max": draw(st.sampled_from([float("inf"), 6.0]))}
        kernel = (g.pop("kernel_h"), g.pop("kernel_w"))
        x = b.quant(rng, inputs, out, kernel, bits, groups, **a, **g)
        residual = draw(st.sampled_from(["", "", "layer", "copy"]))
        if residual:
            other = (b.add("Activation", x, out, activation=1) if residual == "copy" else
                     b.quant(rng, inputs, out, kernel, bits, groups, **a, **g))
            limits = {"clamp_min": -0.5, "clamp_max": 1.5}
            x = b.add("Add", draw(st.sampled_from([(x, other), (other, x)])), out,
                      activation=draw(st.sampled_from([0, 1, 3])), **limits)
        size = (side({**g, "kernel_h": kernel[0], "kernel_w": kernel[1]}, "h", size[0]),
                side({**g, "kernel_h": kernel[0], "kernel_w": kernel[1]}, "w", size[1]))
        if draw(st.integers(0, 3)) == 0:
            outputs.append(x)
    if draw(st.booleans()) and {n.operator for n in b.nodes} <= {"QuantConv2d", "FixedPoint"}:
        some = rng.random(images[0].shape) < 0.05  # pools and activations of a NaN are another matter
        images[0][some] = rng.choice(SPECIAL, int(some.sum()))
    return b.finish(*dict.fromkeys([*outputs, x])), images
