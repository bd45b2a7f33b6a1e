"""TensorFlow's operators that a stranger's graph may hold: they compute on tensors, and touch nothing else.

Checked is all that runs: the signature that is used, and what loading a SavedModel runs by itself, which are the
functions that make, fill and restore its resources. What else is in the file is never called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from edgeline.errors import UserError
from edgeline.model_io import saved_model
from edgeline.untrusted import reading

_COMPUTING = """
    Abs Acos Acosh Add AddN AddV2 All Angle Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan Atan2 Atanh
    AvgPool AvgPool3D BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchToSpace BatchToSpaceND BesselI0 BesselI0e
    BesselI1 BesselI1e BesselJ0 BesselJ1 BesselK0 BesselK0e BesselK1 BesselK1e BesselY0 BesselY1 Betainc BiasAdd
    BiasAddV1 Bitcast BitwiseAnd BitwiseOr BitwiseXor BlockLSTM BlockLSTMV2 BroadcastArgs BroadcastTo Bucketize
    Cast Ceil CheckNumerics Cholesky ClipByValue CombinedNonMaxSuppression Complex ComplexAbs Concat
    ConcatOffset ConcatV2 Conj ConjugateTranspose Const ControlTrigger Conv2D Conv2DBackpropInput Conv3D
    Conv3DBackpropInputV2 Cos Cosh CropAndResize Cross Cumprod Cumsum CumulativeLogsumexp DataFormatDimMap
    DataFormatVecPermute Dawsn DepthToSpace DepthwiseConv2dNative Dequantize Diag DiagPart Digamma Dilation2D
    Div DivNoNan DynamicPartition DynamicStitch Einsum Elu Empty EnsureShape Equal Erf Erfc Erfinv EuclideanNorm
    Exp ExpandDims Expint Expm1 ExtractImagePatches ExtractVolumePatches FFT FFT2D FFT3D FakeQuantWithMinMaxArgs
    FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel Fill Floor FloorDiv FloorMod FresnelCos FresnelSin
    FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 FusedPadConv2D FusedResizeAndPadConv2D GRUBlockCell Gather
    GatherNd GatherV2 Greater GreaterEqual HSVToRGB HistogramFixedWidth IFFT IFFT2D IFFT3D IRFFT IRFFT2D IRFFT3D
    Identity IdentityN Igamma IgammaGradA Igammac Imag ImageProjectiveTransformV2 ImageProjectiveTransformV3
    InTopK InTopKV2 Inv Invert InvertPermutation IsFinite IsInf IsNan L2Loss LRN LSTMBlockCell LeakyRelu
    LeftShift Less LessEqual Lgamma LinSpace ListDiff Log Log1p LogSoftmax LogicalAnd LogicalNot LogicalOr
    LowerBound Lu MatMul MatrixBandPart MatrixDeterminant MatrixDiag MatrixDiagPart MatrixDiagPartV2
    MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixInverse MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3
    MatrixSolve MatrixTriangularSolve Max MaxPool MaxPool3D MaxPoolV2 MaxPoolWithArgmax Maximum Mean Mfcc Min
    Minimum MirrorPad Mod Mul MulNoNan Multinomial Ndtri Neg NextAfter NoOp NonMaxSuppression
    NonMaxSuppressionV2 NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5
    NonMaxSuppressionWithOverlaps NotEqual NthElement OneHot OnesLike Pack Pad PadV2 ParallelConcat
    ParallelDynamicStitch Placeholder PlaceholderWithDefault Polygamma Pow PreventGradient Prod Qr
    QuantizeAndDequantize QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 QuantizeV2
    RFFT RFFT2D RFFT3D RGBToHSV RandomStandardNormal RandomUniform RandomUniformInt Range Rank Real RealDiv
    Reciprocal Relu Relu6 Reshape ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor Reverse
    ReverseSequence ReverseV2 RightShift Rint Roll Round Rsqrt ScaleAndTranslate ScatterNd SegmentMax
    SegmentMean SegmentMin SegmentProd SegmentSum Select SelectV2 Selu Shape ShapeN Sigmoid Sign Sin Sinh Size
    Slice Snapshot Softmax Softplus Softsign SpaceToBatch SpaceToBatchND SpaceToDepth Spence Split SplitV Sqrt
    Square SquaredDifference Squeeze StatelessRandomGetAlg StatelessRandomGetKeyCounter StatelessRandomNormal
    StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformV2 StopGradient StridedSlice Sub Sum
    Svd Tan Tanh TensorScatterAdd TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate Tile
    TopK TopKV2 Transpose TruncateDiv TruncateMod TruncatedNormal Unique UniqueV2 UniqueWithCounts
    UniqueWithCountsV2 Unpack UnravelIndex UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd
    UnsortedSegmentSum UpperBound Where Xdivy Xlog1py Xlogy ZerosLike Zeta
"""
#: Of functions, branches and loops; the functions that they call are checked too.
_FLOW = """
    Case Enter Exit For If LoopCond Merge NextIteration PartitionedCall StatefulPartitionedCall StatelessCase
    StatelessIf StatelessWhile Switch While
"""
#: Of values that a model keeps: variables, lists within loops, tables. They are in memory, and belong to the model.
_STATE = """
    Assert AssignAddVariableOp AssignSubVariableOp AssignVariableOp DestroyResourceOp DisableCopyOnRead
    EmptyTensorList HashTableV2 LookupTableFindV2 LookupTableImportV2 LookupTableInsertV2 LookupTableSizeV2
    MutableHashTableV2 ReadVariableOp ResourceGather ResourceGatherNd ResourceScatterUpdate TensorListConcatV2
    TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem TensorListLength
    TensorListPopBack TensorListPushBack TensorListReserve TensorListResize TensorListScatterV2 TensorListSetItem
    TensorListSplit TensorListStack VarIsInitializedOp VariableShape
"""
#: Of text and of examples, for models that read them in their graph.
_TEXT = """
    AsString DecodeAndCropJpeg DecodeBase64 DecodeBmp DecodeGif DecodeImage DecodeJpeg DecodePng DecodeRaw
    ParseExample ParseExampleV2 ParseSingleExample ParseTensor RaggedTensorToSparse RaggedTensorToTensor
    RaggedTensorToVariant SparseFillEmptyRows SparseReshape SparseSlice SparseTensorDenseMatMul SparseToDense
    StaticRegexReplace StringJoin StringLength StringLower StringSplitV2 StringStrip StringToHashBucketFast
    StringToHashBucketStrong StringToNumber StringUpper Substr UnicodeDecode UnicodeDecodeWithOffsets
"""
#: What a graph may hold where it is only computed.
PURE = frozenset(f"{_COMPUTING} {_FLOW} {_STATE} {_TEXT}".split())
#: What a SavedModel may hold: variables too, whose values are in its own folder.
SAVED_MODEL = PURE | {"VarHandleOp"}
#: Reads a table's file, whose path must be that of one of the model's own assets.
_TABLE_FILES = ("InitializeTableFromTextFile", "InitializeTableFromTextFileV2")
#: Of graphs of TensorFlow 1, and of what restores their variables.
_VARIABLES_1 = """
    Assign HashTable InitializeTable InitializeTableV2 LookupTableFind Variable VariableV2
"""
_RESTORER = "RestoreV2"
#: Call a function with their own inputs, in that order.
_PLAIN_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
#: What a function that was loaded may hold.
LOADED = SAVED_MODEL.union(_VARIABLES_1.split())
_RESOURCES = ("_create_resource", "_initialize", "_destroy_resource")
_ASSETS = "saved_model_assets"
_MANY = 5


def check_graph(definition: Any, path: Path, *, allowed: Iterable[str] = PURE) -> None:
    """Checks every node of a GraphDef, and of the functions in it.

    Args:
      definition: the GraphDef.
      path: of its file, for messages.
      allowed: operators.

    Raises:
      UserError: names the operators that are not allowed, each with one of its nodes.
    """
    names = frozenset(allowed)
    _refuse(_foreign(definition.node, definition.library.function, "", names), path)
    for function in definition.library.function:
        _refuse(_foreign(function.node_def, definition.library.function, function.signature.name, names), path)


def check_saved_model(folder: Path, signature: str, *, allowed: frozenset[str] = SAVED_MODEL) -> None:
    """Checks what loading a SavedModel runs, and the signature that is used.

    Args:
      folder: of the SavedModel.
      signature: its name; empty: all of them.
      allowed: operators of its functions, beside the readers of its own tables.

    Raises:
      UserError: the folder holds links, the file is damaged, an asset lies elsewhere, or an operator is not allowed:
        names it with its node.
    """
    reading.check_folder(folder)
    content = saved_model_pb2.SavedModel()
    try:
        content.ParseFromString((folder / "saved_model.pb").read_bytes())
    except DecodeError as error:
        raise UserError(f"model {folder} is a damaged or incomplete SavedModel: {error}") from error
    if not content.meta_graphs:
        raise UserError(f"model {folder} is a damaged or incomplete SavedModel: it holds no graph")
    # any other goes TensorFlow 1's way
    by_objects = len(content.meta_graphs) == 1 and content.meta_graphs[0].HasField("object_graph_def")
    for graph in saved_model.used_graphs(content, folder):
        _check_assets(folder, graph)
        functions = {function.signature.name: function for function in graph.graph_def.library.function}
        if by_objects:
            pending = {*_run_on_loading(graph), *_of_signature(graph, signature)}
        else:
            pending = set(_check_nodes(folder, graph, signature))
        done: set[str] = set()
        while pending:
            name = pending.pop()
            done.add(name)
            if name not in functions:
                raise UserError(f"model {folder} is a damaged SavedModel: it has no function {_short(name)}")
            tables = _TABLE_FILES if by_objects and _reads_assets(graph, functions, name) else ()
            _refuse(_foreign(functions[name].node_def, (), name, allowed.union(tables)), folder)
            pending |= set(_called(functions[name].node_def)) - done


def _foreign(nodes: Any, functions: Any, where: str, allowed: frozenset[str]) -> dict[str, str]:
    """Returns the operators that are not allowed, each with the name of a node."""
    # a node may name a function as its operator
    own = {function.signature.name for function in functions}
    return {
        node.op: f"{where}/{node.name}" if where else node.name
        for node in nodes
        if node.op not in allowed and node.op not in own
    }


def _refuse(foreign: dict[str, str], path: Path) -> None:
    if not foreign:
        return
    shown = [f"{_short(op)} (node {_short(name)})" for op, name in sorted(foreign.items())[:_MANY]]
    more = f" and {len(foreign) - _MANY} more" if len(foreign) > _MANY else ""
    raise UserError(
        f"model {path} is refused: it holds the operators {', '.join(shown)}{more}, which are not on the list of those "
        f"that only compute"
    )


def _called(nodes: Any) -> Iterator[str]:
    """Yields the names of the functions that nodes call."""
    for node in nodes:
        for value in node.attr.values():
            if value.HasField("func"):
                yield value.func.name
            for function in value.list.func:
                yield function.name


def _run_on_loading(graph: Any) -> Iterator[str]:
    """Yields the functions that TensorFlow runs by itself: those of resources, and those that restore an object."""
    nodes = graph.object_graph_def.nodes
    for node in nodes:
        if node.WhichOneof("kind") == "resource":
            for child in node.children:
                yield from _functions_of(nodes, child.node_id)
        for child in node.children:
            if child.local_name in _RESOURCES:
                yield from _functions_of(nodes, child.node_id)
        for name, saveable in node.saveable_objects.items():
            # that of a variable is TensorFlow's own, and no function of the file
            if name:
                yield from _functions_of(nodes, saveable.restore_function)


def _of_signature(graph: Any, signature: str) -> Iterator[str]:
    nodes = graph.object_graph_def.nodes
    for child in nodes[0].children if nodes else ():
        if child.local_name == "signatures":
            for each in nodes[child.node_id].children:
                if signature in ("", each.local_name):
                    yield from _functions_of(nodes, each.node_id)


def _functions_of(nodes: Any, index: int) -> Iterator[str]:
    node = nodes[index] if 0 < index < len(nodes) else None
    if node is not None and node.WhichOneof("kind") == "function":
        yield from node.function.concrete_functions
    elif node is not None and node.WhichOneof("kind") == "bare_concrete_function":
        yield node.bare_concrete_function.concrete_function_name


def _reads_assets(graph: Any, functions: dict[str, Any], name: str) -> bool:
    """Returns whether a function is given the path of each table's file, and every time that of an asset."""
    function = functions[name]
    paths = [node.input[1] for node in function.node_def if node.op in _TABLE_FILES and len(node.input) > 1]
    return all(_is_given_asset(graph, functions, name, path) for path in paths)


def _is_given_asset(graph: Any, functions: dict[str, Any], name: str, argument: str, depth: int = 0) -> bool:
    """Returns whether all that call a function, and the loader, give it an asset as an argument."""
    arguments = [each.name for each in functions[name].signature.input_arg]
    if argument not in arguments or depth > _MANY:
        return False
    position, objects = arguments.index(argument), graph.object_graph_def
    entry = objects.concrete_functions.get(name)
    if entry is not None:
        # what a function captured comes after what it is called with
        bound = position - len(arguments) + len(entry.bound_inputs)
        index = entry.bound_inputs[bound] if bound >= 0 else -1
        if not 0 <= index < len(objects.nodes) or objects.nodes[index].WhichOneof("kind") != "asset":
            return False
    calls = [(each, node) for each in functions.values() for node in each.node_def if name in _called([node])]
    return (entry is not None or bool(calls)) and all(
        node.op in _PLAIN_CALLS
        and position < len(node.input)
        and _is_given_asset(graph, functions, caller.signature.name, node.input[position], depth + 1)
        for caller, node in calls
    )


def _check_nodes(folder: Path, graph: Any, signature: str) -> Iterator[str]:
    """Checks what runs of a graph of TensorFlow 1, from its ends to its inputs; yields the functions that it calls."""
    nodes = {node.name: node for node in graph.graph_def.node}
    assets = {_node(asset.tensor_info.name) for asset in _assets(graph)}
    ends = [
        info.name
        for name, entry in graph.signature_def.items()
        if signature in ("", name) or name.startswith("__saved_model")
        for info in (*entry.inputs.values(), *entry.outputs.values())
    ]
    for collection in graph.collection_def.values():
        ends += collection.node_list.value
    allowed = LOADED
    for reached in (_reached(nodes, ends), _reached(nodes, [graph.saver_def.restore_op_name])):
        for node in reached:
            own = node.op in allowed
            if node.op in _TABLE_FILES:
                own = len(node.input) > 1 and _source(nodes, node.input[1]) in assets
            if node.op == _RESTORER:
                start = _node(graph.saver_def.filename_tensor_name)
                own = bool(node.input) and bool(start) and _source(nodes, node.input[0], start) == start
            if not own:
                _refuse({node.op: node.name}, folder)
            yield from _called([node])


def _reached(nodes: dict[str, Any], ends: Iterable[str]) -> list[Any]:
    pending, found = [_node(name) for name in ends], {}
    while pending:
        name = pending.pop()
        if name in nodes and name not in found:
            found[name] = nodes[name]
            pending += [_node(each) for each in nodes[name].input]
    return list(found.values())


def _source(nodes: dict[str, Any], tensor: str, stop: str = "") -> str:
    """Returns the node that a tensor comes from, through what hands it on as it is."""
    name = _node(tensor)
    for _ in range(_MANY):
        if name == stop or name not in nodes or nodes[name].op != "Identity" or not nodes[name].input:
            break
        name = _node(nodes[name].input[0])
    return name


def _node(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _assets(graph: Any) -> list[Any]:
    """Returns the files that belong to a graph, wherever the TensorFlow that wrote it put them."""
    # where there are some of the one kind, the other is not looked at
    if graph.asset_file_def or _ASSETS not in graph.collection_def:
        return list(graph.asset_file_def)
    assets = []
    for entry in graph.collection_def[_ASSETS].any_list.value:
        asset = meta_graph_pb2.AssetFileDef()
        if entry.Unpack(asset):
            assets.append(asset)
    return assets


def _check_assets(folder: Path, graph: Any) -> None:
    for asset in _assets(graph):
        name = PurePosixPath(asset.filename)
        if name.is_absolute() or ".." in name.parts or not (folder / "assets" / name).is_file():
            raise UserError(f"model {folder} is refused: its asset {_short(asset.filename)} is not in its assets/")


def _short(name: str) -> str:
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return text if len(text) <= 100 else f"{text[:100]}…"
