"""The network of ``test_elsewhere.py`` in TensorFlow, through its converter: ``WEIGHTS.npz OUT.tflite HEIGHT WIDTH``.

Writes OUT.tflite and OUT-half.tflite, whose weights are float16.
"""

import sys

import numpy as np
import tensorflow as tf

weights, out, height, width = sys.argv[1:]
size = int(height), int(width)
w = {k: tf.constant(v) for k, v in np.load(weights).items()}


@tf.function(input_signature=[tf.TensorSpec([1, *size, 1], tf.float32)])
def network(x):
    first = tf.nn.relu(tf.nn.conv2d(x, w["stem"], 1, "SAME") + w["stem_bias"])
    deep = tf.nn.max_pool2d(first, 2, 2, "VALID")
    deep = tf.nn.relu(tf.nn.conv2d(deep, w["deep"], 1, "SAME", dilations=2) + w["deep_bias"])
    corners = tf.compat.v1.image.resize_bilinear(deep, size, align_corners=True)
    centres = tf.compat.v1.image.resize_bilinear(deep, size, half_pixel_centers=True)
    joined = tf.concat([first, corners, centres], 3)
    return tf.sigmoid(tf.nn.conv2d(joined, w["head"], 1, "SAME") + w["head_bias"])


for name, halves in ((out, False), (out.replace(".tflite", "-half.tflite"), True)):
    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()], network)
    if halves:
        converter.optimizations, converter.target_spec.supported_types = [tf.lite.Optimize.DEFAULT], [tf.float16]
    with open(name, "wb") as file:
        file.write(converter.convert())
