"""Programs for the tests of the engine: a builder, and a strategy that draws networks of binary convolutions."""

from __future__ import annotations

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
            made["activation_parameters"] = np.stack([rng.integers(-200, 201, out) * unit, rng.integers(0, 128, out) / 128,
                                                      rng.integers(-200, 201, out) * unit]).astype(np.float32)
        inputs = (x,) if residual is None else (x, residual)
        return self.add("BinaryConv2d", inputs, out, grid, made | (constants or {}), version=1, bit_order=1,
                        in_channels=channels, out_channels=out, kernel_h=kernel[0], kernel_w=kernel[1], groups=groups,
                        fraction_bits=grid, residual=0 if residual is None else mode, **attributes)

    def finish(self, *outputs: int) -> Program:
        """int16 results become outputs through float copies."""
        outputs = tuple(self.add("Activation", n, self.tensors[n].channels) if self.tensors[n].fraction_bits >= 0 else n
                        for n in outputs)
        return Program(tuple(self.tensors), tuple(self.nodes), self.inputs, outputs)


SAME = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}


class _Network:
    """Draws binary layers behind each other; sizes of the tensors are known."""

    WORK = 1_500_000  # multiply-accumulates of a layer, about

    def __init__(self, draw):
        self.draw = draw
        channels = draw(st.integers(1, 70))
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.height = draw(st.integers(1, 10))
        self.width = draw(st.one_of(st.integers(1, 20), st.integers(60, 68), st.integers(124, 140), st.integers(1, 140)))
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
        draw = self.draw
        kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (3, 1), (1, 5), (2, 3), (5, 2)]))
        some = st.sampled_from([1, 1, 1, 2, 3])
        g = {"kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": draw(some), "stride_w": draw(some),
             "dilation_h": draw(some), "dilation_w": draw(some)}
        if draw(st.booleans()):
            pads = [g["dilation_h"] * (kernel[0] - 1) // 2, g["dilation_w"] * (kernel[1] - 1) // 2] * 2
        else:
            pads = [draw(st.integers(0, 3)) for _ in range(4)]
        g |= dict(zip(("pad_top", "pad_left", "pad_bottom", "pad_right"), pads, strict=True))
        for axis, size in zip("hw", self.size, strict=True):
            if self.side(g, axis, size) < 1:
                g[f"kernel_{axis}"] = g[f"dilation_{axis}"] = 1
        return g

    @staticmethod
    def side(g: dict, axis: str, size: int) -> int:
        pads = g["pad_top"] + g["pad_bottom"] if axis == "h" else g["pad_left"] + g["pad_right"]
        return out_side(size, g[f"kernel_{axis}"], g[f"stride_{axis}"], g[f"dilation_{axis}"], pads)

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
            a |= {"clamp_min": draw(st.sampled_from([low, -np.inf])), "clamp_max": draw(st.sampled_from([high, np.inf]))}
        x_bits = self.builder.tensors[self.x].fraction_bits
        largest = min(8, max(1, 24000 * groups // (channels * g["kernel_h"] * g["kernel_w"]))) if self.easy else 8
        constants = {"threshold": self.numbers(kinds[0], channels, 6 if x_bits < 0 else x_bits, 60),
                     "scale": self.numbers(kinds[1], out, bits + draw(st.sampled_from([0, 0, 2, 5])), largest),
                     "bias": self.numbers(kinds[2], out, bits, draw(st.sampled_from([100, 1000] if self.easy else [100, 1000, 40000])))}
        if a["activation"] == 1:
            slope = {"grid": lambda: rng.integers(0, 128, out) / 128, "any": lambda: rng.normal(0, 1, out),
                     "special": lambda: rng.choice(np.append(SPECIAL, [1.0, 0.5, -0.25, 255 / 256]), out)}[kinds[3]]()
            constants["activation_parameters"] = np.stack(
                [self.numbers(kinds[4], out, bits, 200), slope, self.numbers(kinds[4], out, bits, 200)]).astype(np.float32)
        size = (self.side(g, "h", self.size[0]), self.side(g, "w", self.size[1]))
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
