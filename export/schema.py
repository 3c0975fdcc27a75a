"""The ONNX schema of the ``irstd`` domain, derived from :mod:`irstd_edge.opspec`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import onnx
from onnx import TypeProto
from onnx.defs import OpSchema

from irstd_edge import program
from irstd_edge.opspec import (
    BINARY_CONV2D,
    DOMAIN,
    FIXED_POINT,
    OPSET_VERSION,
    PROGRAM,
    QUANT_CONV2D,
    BinaryConv2dSpec,
    FixedPointSpec,
    Operand,
    Operator,
    OpSpecError,
    ProgramSpec,
    QuantConv2dSpec,
)
from irstd_edge.program_sizes import tensor_sizes

_TYPES = {"float32": "tensor(float)", "int32": "tensor(int32)", "uint8": "tensor(uint8)"}
_OPTION = OpSchema.FormalParameterOption


@cache
def register_schemas() -> None:
    """Make the ONNX checker, shape inference and onnxscript accept ``irstd`` nodes; repeated calls do nothing."""
    onnx.defs.register_schema(_schema(BINARY_CONV2D, "[N, OC, OH, OW]", _infer_convolution(BinaryConv2dSpec)))
    onnx.defs.register_schema(_schema(QUANT_CONV2D, "[N, OC, OH, OW]", _infer_convolution(QuantConv2dSpec)))
    onnx.defs.register_schema(_schema(FIXED_POINT, "of the shape of x", _infer_fixed_point))
    onnx.defs.register_schema(_schema(PROGRAM, "[N, C, H, W], one for each output of the program", _infer_program,
                                      _OPTION.Variadic))


def _schema(operator: Operator, output: str, infer: Callable, option=_OPTION.Single) -> OpSchema:
    schema = OpSchema(
        operator.name, DOMAIN, OPSET_VERSION, doc=operator.doc,
        inputs=[
            OpSchema.FormalParameter(o.name, _TYPES[o.dtype], o.doc, param_option=_option(o)) for o in operator.inputs
        ],
        outputs=[OpSchema.FormalParameter("y", "tensor(float)", output, param_option=option)],
        attributes=[_attribute(a) for a in operator.attributes],
    )
    schema.set_type_and_shape_inference_function(infer)
    return schema


def _option(operand: Operand):
    return _OPTION.Variadic if operand.variadic else _OPTION.Optional if operand.optional else _OPTION.Single


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


def _infer_convolution(kind: type[BinaryConv2dSpec | QuantConv2dSpec]) -> Callable:
    return lambda context: _infer_output(context, kind.from_attributes(_attributes(context, kind.operator)))


def _infer_output(context, spec: BinaryConv2dSpec | QuantConv2dSpec) -> None:
    """``[N, IC, H, W]`` to ``[N, OC, OH, OW]``; a symbolic size survives where the operator keeps it."""
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


def _infer_program(context) -> None:
    """``[N, C, H, W]`` each; a symbolic size survives where the output has the input's at the sizes that are tried."""
    spec = ProgramSpec.from_attributes(_attributes(context, PROGRAM))
    data = context.get_input_data(0)
    found = None if data is None else program.read(onnx.numpy_helper.to_array(data).tobytes())
    if found is not None and (context.get_num_inputs() - 1, context.get_num_outputs()) != (
            found.inputs, len(found.outputs)):
        raise OpSpecError(f"{DOMAIN}.{PROGRAM.name} has {context.get_num_inputs() - 1} images and "
                          f"{context.get_num_outputs()} outputs, its program {found.inputs} and {len(found.outputs)}")
    source = context.get_input_type(1)
    batch, sides = None, []
    if source is not None and source.tensor_type.HasField("shape"):
        batch, _, *sides = source.tensor_type.shape.dim
    for i in range(context.get_num_outputs()):
        result = TypeProto()
        result.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if found is not None and sides:
            dims = result.tensor_type.shape.dim
            dims.add().CopyFrom(batch)
            dims.add().dim_value = found.tensors[found.outputs[i]].channels
            for axis, side in enumerate(sides):
                _infer_side(found, found.outputs[i], (spec.height, spec.width), axis, side, dims.add())
        context.set_output_type(i, result)


def _infer_side(found: program.Program, tensor: int, known: tuple[int, int], axis: int, side, out) -> None:
    """One side of an output; ``known`` is a size that the program fits."""
    def result(length: int) -> int:
        size = (length, known[1]) if axis == 0 else (known[0], length)
        return tensor_sizes(found, *size)[tensor][axis]

    if side.HasField("dim_value"):
        out.dim_value = result(side.dim_value)
    elif side.HasField("dim_param") and all(result(n) == n for n in (known[axis], 2 * known[axis])):
        out.dim_param = side.dim_param
