"""irstd-edge: deploy infrared small-target detection networks, binarised and mixed-precision ones included."""

__version__ = "0.1.0"
