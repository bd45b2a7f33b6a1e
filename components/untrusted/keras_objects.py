"""Which classes and functions of Keras a stranger's model may be made of, by the names that its config may use.

The lists are written out: what a later Keras adds is refused until somebody looked at it. Not among them are layers
that hold code (Lambda), read files or load models by a path (TFSMLayer, TorchModuleWrapper, JaxLayer, FlaxLayer), call
any method by its name (ClassMethod, InstanceMethod, InstanceProperty) or any operator (TensorFlowOpLayer), or make
feature columns (DenseFeatures). Losses, metrics and optimizers are not there because no layer holds one: what a model
was compiled with is left out before it is built.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import types
from typing import Any

_LAYERS = """
    AbstractRNNCell Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention
    AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D AvgPool1D
    AvgPool2D AvgPool3D BatchNormalization Bidirectional CategoryEncoding CenterCrop Concatenate Conv1D Conv1DTranspose
    Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D Convolution1DTranspose
    Convolution2D Convolution2DTranspose Convolution3D Convolution3DTranspose Cropping1D Cropping2D Cropping3D CutMix
    Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding Equalization Flatten GRU
    GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D
    GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization GroupQueryAttention HashedCrossing Hashing Identity
    InputLayer IntegerLookup LSTM LSTMCell Layer LayerNormalization LeakyReLU LocallyConnected1D LocallyConnected2D
    Masking MaxNumBoundingBoxes MaxPool1D MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D Maximum
    MelSpectrogram Minimum MixUp MultiHeadAttention Multiply Normalization PReLU Permute RMSNormalization RNN
    RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
    RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHeight RandomHue
    RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear
    RandomTranslation RandomWidth RandomZoom ReLU RepeatVector Rescaling Reshape Resizing ReversibleEmbedding
    STFTSpectrogram SeparableConv1D SeparableConv2D SeparableConvolution1D SeparableConvolution2D SimpleRNN
    SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization
    StackedRNNCells StringLookup Subtract TextVectorization ThresholdedReLU TimeDistributed UnitNormalization
    UpSampling1D UpSampling2D UpSampling3D Wrapper ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""
_INITIALIZERS = """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal LecunUniform Ones
    Orthogonal OrthogonalInitializer RandomNormal RandomUniform STFT STFTInitializer TruncatedNormal VarianceScaling
    Zeros constant glorot_normal glorot_uniform he_normal he_uniform identity lecun_normal lecun_uniform ones orthogonal
    random_normal random_uniform truncated_normal variance_scaling zeros
"""
_REGULARIZERS = "L1 L1L2 L2 OrthogonalRegularizer l1 l1_l2 l2 orthogonal_regularizer"
_CONSTRAINTS = """
    MaxNorm MinMaxNorm NonNeg RadialConstraint UnitNorm max_norm min_max_norm non_neg radial_constraint unit_norm
"""
_ACTIVATIONS = """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear log_sigmoid
    log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus sparse_sigmoid
    sparsemax squareplus swish tanh tanh_shrink threshold
"""
#: Modules of a Keras by what of them may be named.
_PUBLIC = {
    "layers": _LAYERS,
    "layers.experimental": "EinsumDense RandomFourierFeatures SyncBatchNormalization",
    "layers.experimental.preprocessing": """
        CategoryEncoding CenterCrop Discretization HashedCrossing Hashing IntegerLookup Normalization RandomContrast
        RandomCrop RandomFlip RandomHeight RandomRotation RandomTranslation RandomWidth RandomZoom Rescaling Resizing
        StringLookup TextVectorization
    """,
    "models": "Model Sequential",
    "": "DTypePolicy Model Sequential",
    "dtype_policies": "DTypePolicy FloatDTypePolicy",
    "mixed_precision": "DTypePolicy Policy",
    "initializers": _INITIALIZERS,
    "regularizers": _REGULARIZERS,
    "constraints": _CONSTRAINTS,
}
#: What Keras and its applications save although it is not public, by the module it is in.
_PRIVATE = {
    "tf_keras": {
        "tf_keras.src.engine.functional": "Functional",
        "tf_keras.src.engine.base_layer": "AddLoss AddMetric",
        "tf_keras.src.layers.core.tf_op_layer": "SlicingOpLambda TFOpLambda",
        "tf_keras.src.layers.normalization.batch_normalization_v1": "BatchNormalization",
        "tf_keras.src.applications.convnext": "LayerScale StochasticDepth",
        "tf_keras.src.applications.inception_resnet_v2": "CustomScaleLayer",
        "tensorflow.python.ops.init_ops_v2": """
            Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal LecunUniform Ones Orthogonal
            RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros
        """,
    },
    "keras": {
        "keras.src.models.functional": "Functional",
        "keras.src.applications.convnext": "LayerScale StochasticDepth",
        "keras.src.applications.inception_resnet_v2": "CustomScaleLayer",
        "keras.src.ops.numpy": """
            Abs Absolute Add All Amax Amin Any Arange Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Argmax
            Argmin Argsort Array Average Bincount BroadcastTo Ceil Clip Concatenate Copy Cos Cosh CountNonzero Cross
            Cumprod Cumsum Diag Diagonal Diff Digitize Divide DivideNoNan Dot Einsum Equal Exp Exp2 ExpandDims Expm1
            Flip Floor FloorDivide Full FullLike GetItem Greater GreaterEqual Hstack Inner Isclose Isfinite Isinf
            Isnan Less LessEqual Linspace Log Log10 Log1p Log2 Logaddexp LogicalAnd LogicalNot LogicalOr LogicalXor
            Matmul Max Maximum Mean Median Meshgrid Min Minimum Mod Moveaxis Multiply NanToNum Ndim Negative
            NotEqual OnesLike Outer Pad Power Prod Ravel Reciprocal Repeat Reshape Roll Round Sign Sin Sinh Size
            Sort Split Sqrt Square Squeeze Stack Std Subtract Sum Swapaxes Take TakeAlongAxis Tan Tanh Tensordot
            Tile Trace Transpose Tril Triu TrueDivide Trunc Var Vdot Vstack Where ZerosLike
        """,
        "keras.src.ops.nn": """
            AdaptiveAveragePool AdaptiveMaxPool AveragePool BatchNorm Celu Conv ConvTranspose DepthToSpace DepthwiseConv
            DotProductAttention Elu Gelu Glu HardShrink HardSigmoid HardSilu HardTanh LayerNorm LeakyRelu LogSigmoid
            LogSoftmax MaxPool Moments MultiHot Normalize OneHot RMSNorm Relu Relu6 Selu SeparableConv Sigmoid Silu
            SoftShrink Softmax Softplus Softsign SpaceToDepth SparsePlus SparseSigmoid Sparsemax Squareplus TanhShrink
            Threshold
        """,
        "keras.src.ops.math": """
            Erf Erfinv FFT FFT2 IFFT2 IRFFT ISTFT Logsumexp RFFT Rsqrt STFT SegmentMax SegmentSum TopK
        """,
        "keras.src.ops.linalg": "Cholesky Det Inv Norm Solve SolveTriangular",
        "keras.src.ops.image": "CropImages ExtractPatches HSVToRGB PadImages RGBToGrayscale RGBToHSV Resize",
        "keras.src.ops.core": "Cast SaturateCast Slice StopGradient Unstack",
    },
}
#: Names that the config of an older Keras has for a class.
_FORMER = {"BatchNormalizationV1": "BatchNormalization", "BatchNormalizationV2": "BatchNormalization"}
#: Words for initializers that are no names of theirs.
_SHORT = "gaussian laplacian normal one uniform zero"


@dataclasses.dataclass(frozen=True)
class KerasObjects:
    """What may be named in the config of a model of one Keras.

    Attributes:
      package: `tf_keras` or `keras`.
      classes: by module, None where a config names none, and name.
      functions: likewise; all are activations.
      strings: by the end of a key of a layer's config, the words that stand for an object there.
    """

    package: str
    classes: dict[tuple[str | None, str], type]
    functions: dict[tuple[str | None, str], Any]
    strings: dict[str, frozenset[str]]

    def names(self) -> frozenset[str]:
        """Returns all names, without the modules."""
        return frozenset(name for _, name in (*self.classes, *self.functions))


@functools.cache
def objects_of(package: str) -> KerasObjects:
    """Returns what may be named in the config of a model of `tf_keras` or `keras` (3)."""
    classes: dict[tuple[str | None, str], type] = {}
    functions: dict[tuple[str | None, str], Any] = {}
    registered_name = importlib.import_module(f"{package}.saving").get_registered_name

    def modules(name: str) -> set[str]:
        # tf-keras calls itself keras or tf_keras, by the release that wrote the file
        head, _, rest = name.partition(".")
        both = ("keras", "tf_keras") if head in ("keras", "tf_keras") and package == "tf_keras" else (head,)
        return {f"{each}.{rest}" if rest else each for each in both}

    def add(table: dict[tuple[str | None, str], Any], module: str, name: str, value: Any) -> None:
        for each in modules(module):
            table[each, name] = value
            if isinstance(value, type):
                for own in modules(value.__module__):
                    table.setdefault((own, value.__name__), value)
        table.setdefault((None, name), value)

    for inner, names in _PUBLIC.items():
        place = f"{package}.{inner}" if inner else package
        module = _module(place)
        for name in names.split():
            value = getattr(module, name, None)
            if isinstance(value, type):
                add(classes, place, name, value)
    for place, names in _PRIVATE[package].items():
        module = _module(place)
        for name in names.split():
            value = getattr(module, name, None)
            if isinstance(value, type):
                add(classes, place, name, value)
                # an HDF5 file calls a class of the applications by what it is registered as
                classes.setdefault((None, registered_name(value)), value)
    for name, now in _FORMER.items():
        classes[None, name] = classes[None, now]
    activations = _module(f"{package}.activations")
    for name in _ACTIVATIONS.split():
        value = getattr(activations, name, None)
        if value is not None:
            add(functions, f"{package}.activations", name, value)
            functions["builtins", name] = value
            # where the function really is: a config of tf-keras says so
            for own in modules(getattr(value, "__module__", "")):
                functions.setdefault((own, name), value)
    layers = {name for _, name in classes}
    strings = {
        "activation": frozenset(_ACTIVATIONS.split()) | layers,
        "initializer": frozenset(f"{_INITIALIZERS} {_SHORT}".split()),
        "regularizer": frozenset(_REGULARIZERS.split()),
        "constraint": frozenset(_CONSTRAINTS.split()),
    }
    return KerasObjects(package, classes, functions, strings)


def _module(name: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        pass
    # a public package of Keras that is an attribute alone
    parent, _, last = name.rpartition(".")
    found = getattr(_module(parent), last, None) if parent else None
    return found if isinstance(found, types.ModuleType) else None
