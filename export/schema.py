"""The ONNX schema of the ``irstd`` domain, derived from :mod:`irstd_edge.opspec`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import onnx
from onnx import TypeProto
from onnx.defs import OpSchema

from irstd_edge.opspec import (
    BINARY_CONV2D,
    DOMAIN,
    FIXED_POINT,
    OPSET_VERSION,
    BinaryConv2dSpec,
    FixedPointSpec,
    Operator,
)

_TYPES = {"float32": "tensor(float)", "int32": "tensor(int32)"}


@cache
def register_schemas() -> None:
    """Make the ONNX checker, shape inference and onnxscript accept ``irstd`` nodes; repeated calls do nothing."""
    onnx.defs.register_schema(_schema(BINARY_CONV2D, "[N, OC, OH, OW]", _infer_binary_conv2d))
    onnx.defs.register_schema(_schema(FIXED_POINT, "of the shape of x", _infer_fixed_point))


def _schema(operator: Operator, output: str, infer: Callable) -> OpSchema:
    option = OpSchema.FormalParameterOption
    schema = OpSchema(
        operator.name, DOMAIN, OPSET_VERSION, doc=operator.doc,
        inputs=[
            OpSchema.FormalParameter(o.name, _TYPES[o.dtype], o.doc,
                                     param_option=option.Optional if o.optional else option.Single)
            for o in operator.inputs
        ],
        outputs=[OpSchema.FormalParameter("y", "tensor(float)", output)],
        attributes=[_attribute(a) for a in operator.attributes],
    )
    schema.set_type_and_shape_inference_function(infer)
    return schema


def _attribute(attribute) -> OpSchema.Attribute:
    if attribute.default is None:
        kind = OpSchema.AttrType.INT if attribute.kind is int else OpSchema.AttrType.FLOAT
        return OpSchema.Attribute(attribute.name, kind, attribute.doc, required=True)
    default = onnx.helper.make_attribute(attribute.name, attribute.default)
    return OpSchema.Attribute(attribute.name, default, attribute.doc)


def _attributes(context, operator: Operator) -> dict[str, int | float]:
    protos = {a.name: context.get_attribute(a.name) for a in operator.attributes}
    return {name: onnx.helper.get_attribute_value(p) for name, p in protos.items() if p is not None}


def _infer_fixed_point(context) -> None:
    FixedPointSpec.from_attributes(_attributes(context, FIXED_POINT))
    source = context.get_input_type(0)
    if source is not None:
        context.set_output_type(0, source)


def _infer_binary_conv2d(context) -> None:
    """``[N, IC, H, W]`` to ``[N, OC, OH, OW]``; a symbolic size survives where the operator keeps it."""
    spec = BinaryConv2dSpec.from_attributes(_attributes(context, BINARY_CONV2D))
    result = TypeProto()
    result.tensor_type.elem_type = onnx.TensorProto.FLOAT
    source = context.get_input_type(0)
    if source is not None and source.tensor_type.HasField("shape"):
        batch, _, height, width = source.tensor_type.shape.dim
        dims = result.tensor_type.shape.dim
        dims.add().CopyFrom(batch)
        dims.add().dim_value = spec.out_channels
        steps = (
            (height, spec.stride_h, spec.pad_top + spec.pad_bottom - spec.dilation_h * (spec.kernel_h - 1)),
            (width, spec.stride_w, spec.pad_left + spec.pad_right - spec.dilation_w * (spec.kernel_w - 1)),
        )
        for size, stride, growth in steps:
            out = dims.add()
            if size.HasField("dim_value"):
                out.dim_value = (size.dim_value + growth - 1) // stride + 1
            elif stride == 1 and growth == 0 and size.HasField("dim_param"):
                out.dim_param = size.dim_param
    context.set_output_type(0, result)
