"""Larq Compute Engine: binary networks of the same shapes as ours, random weights, written in Keras.

Compared with what Keras computes of the same network: the weights are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def preload(artefact: str) -> None:
    import larq_compute_engine.tflite.python.interpreter_wrapper_lite  # noqa: F401


def convert(work: Path, out: Path, precision: str) -> None:
    import larq_compute_engine as lce
    import tensorflow as tf

    tf.keras.utils.set_random_seed(1)
    x = np.load(work / "inputs.npz")["check"].transpose(0, 2, 3, 1)
    model = layer(x.shape[1:]) if x.shape[-1] > 1 else biisnet(x.shape[1:])
    # BN statistics of real activations, so that signs of both kinds occur.
    for _ in range(3):
        model(x, training=True)
    np.save(out / "reference.npy", model(x, training=False).numpy().transpose(0, 3, 1, 2))
    (out / "model.tflite").write_bytes(lce.convert_keras_model(model))


def unit(x, channels: int, shortcut=None):
    """sign, binary 3x3 convolution, BN, PReLU, shortcut."""
    import larq as lq
    import tensorflow as tf

    y = lq.layers.QuantConv2D(
        channels, 3, padding="same", pad_values=1.0, use_bias=False, input_quantizer="ste_sign",
        kernel_quantizer="ste_sign", kernel_constraint="weight_clip", kernel_initializer="glorot_normal",
    )(x)  # fmt: skip
    y = tf.keras.layers.BatchNormalization(momentum=0.5)(y)
    y = tf.keras.layers.PReLU(shared_axes=[1, 2], alpha_initializer=tf.keras.initializers.Constant(0.25))(y)
    return tf.keras.layers.add([y, x if shortcut is None else shortcut])


def biisnet(shape: tuple[int, int, int], channels: int = 16, blocks: int = 2, bottleneck: int = 4):
    """:class:`irstd_edge.models.biisnet.BiisNet` with binary units; ``shape`` is ``[H, W, 1]``."""
    import tensorflow as tf

    layers = tf.keras.layers
    c1, c2 = channels, 2 * channels

    def stage(x, count: int):
        for _ in range(count):
            x = unit(x, x.shape[-1])
        return x

    def down(x):
        x = layers.AveragePooling2D(2)(x)
        return unit(x, 2 * x.shape[-1], layers.concatenate([x, x]))

    def up(x):
        half = x.shape[-1] // 2
        x = unit(x, half, (x[..., :half] + x[..., half:]) * 0.5)
        return layers.UpSampling2D(2, interpolation="bilinear")(x)

    x = image = layers.Input(shape, batch_size=1)
    e1 = stage(layers.Conv2D(c1, 3, padding="same")(x), blocks)
    e2 = stage(down(e1), blocks)
    x = stage(down(e2), bottleneck)
    x = stage(layers.add([up(x), e2]), blocks)
    x = stage(layers.add([up(x), e1]), blocks)
    assert x.shape[-1] == c1 and e2.shape[-1] == c2
    return tf.keras.Model(image, layers.Conv2D(1, 1, activation="sigmoid", kernel_initializer="glorot_normal")(x))


def layer(shape: tuple[int, int, int]):
    """One binary 3x3 convolution and its BN, float in and out; ``shape`` is ``[H, W, C]``."""
    import larq as lq
    import tensorflow as tf

    x = tf.keras.layers.Input(shape, batch_size=1)
    y = lq.layers.QuantConv2D(
        shape[-1], 3, padding="same", pad_values=1.0, use_bias=False, input_quantizer="ste_sign",
        kernel_quantizer="ste_sign", kernel_constraint="weight_clip",
    )(x)  # fmt: skip
    return tf.keras.Model(x, tf.keras.layers.BatchNormalization(momentum=0.5)(y))


class Session:
    """One file; its wrapper copies input and output within the only call that runs it."""

    isa = None

    def __init__(self, path: Path, threads: int):
        from importlib.metadata import version

        from larq_compute_engine.tflite.python.interpreter_wrapper_lite import LiteInterpreter

        self.runtime = f"larq-compute-engine {version('larq-compute-engine')}"
        # model, threads, reference kernels, indirect kernels (the fast ones), XNNPACK for the float rest
        self.interpreter = LiteInterpreter(path.read_bytes(), threads, False, True, True)

    def run(self, x: np.ndarray) -> np.ndarray:
        return self.interpreter.predict([_channels_last(x)])[0].transpose(0, 3, 1, 2)

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        inputs = [_channels_last(x)]
        return lambda: self.interpreter.predict(inputs)


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def open_session(bundle: str, artefact: str, threads: int) -> Session:
    return Session(Path(bundle) / "model.tflite", threads)
