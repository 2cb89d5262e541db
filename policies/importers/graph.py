"""Builds small ONNX graphs: named constants, nodes, and another project's network taken in whole.

It does not know any project's format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

IR_VERSION = 8  # any runtime of the last years reads it; onnx's own newest is too new for some


class Graph:
    """A graph under construction; every method returns the name of the value it made."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def constant(self, name: str, values: ArrayLike, dtype: type = np.float32) -> str:
        """A weight that is written here."""
        self.weights.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """One node with one output."""
        self.nodes.append(
            helper.make_node(operator, list(inputs), [output], name=output, **attributes)
        )
        return output

    def embed(self, model: ModelProto, renamed: Mapping[str, str]) -> None:
        """Take in all nodes and weights unchanged; names get "net/" except those in `renamed`."""

        def name(old: str) -> str:
            return renamed.get(old, f"net/{old}" if old else "")

        for node in model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"net/{node.name}" if node.name else ""  # names must differ, "" may repeat
            copy.input[:] = [name(old) for old in node.input]
            copy.output[:] = [name(old) for old in node.output]
            self.nodes.append(copy)
        for weight in model.graph.initializer:
            tensor = TensorProto()
            tensor.CopyFrom(weight)
            tensor.name = name(weight.name)
            self.weights.append(tensor)

    def model(
        self,
        inputs: Mapping[str, Sequence[int]],
        outputs: Mapping[str, Sequence[int]],
        opset: int,
    ) -> ModelProto:
        """The whole model; inputs that no node reads are left out."""
        read = {name for node in self.nodes for name in node.input}
        graph = helper.make_graph(
            self.nodes,
            "policy",
            _values({name: shape for name, shape in inputs.items() if name in read}.items()),
            _values(outputs.items()),
            self.weights,
        )
        return helper.make_model(
            graph,
            producer_name="plexus",
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=IR_VERSION,
        )


def _values(named: Iterable[tuple[str, Sequence[int]]]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in named
    ]


def metadata(model: ModelProto) -> dict[str, str]:
    """Key -> text of the model's metadata."""
    return {prop.key: prop.value for prop in model.metadata_props}


def shapes(values: Iterable[onnx.ValueInfoProto]) -> dict[str, list[int]]:
    """Name -> dimensions of inputs or outputs; 0 where one is not a number."""
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }
