"""TensorFlow's functions that a stranger's model may call: they compute on numbers, and touch nothing else.

A TFOpLambda or SlicingOpLambda layer of Keras 2 holds the name of any function that TensorFlow exports, Keras' own
included, and the arguments it is called with while the model is put together.
"""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

from tensorflow.python.util import tf_export

_MATH = """
    abs accumulate_n acos acosh add add_n angle argmax argmin asin asinh atan atan2 atanh ceil conj cos cosh
    count_nonzero cumprod cumsum cumulative_logsumexp digamma divide divide_no_nan equal erf erfc erfcinv erfinv exp
    expm1 floor floordiv floormod greater greater_equal imag in_top_k invert_permutation is_finite is_inf is_nan
    l2_normalize lbeta less less_equal lgamma log log1p log_sigmoid logical_and logical_not logical_or logical_xor
    maximum minimum mod multiply multiply_no_nan negative nextafter not_equal polyval pow real reciprocal
    reciprocal_no_nan reduce_all reduce_any reduce_euclidean_norm reduce_logsumexp reduce_max reduce_mean reduce_min
    reduce_prod reduce_std reduce_sum reduce_variance rint round rsqrt scalar_mul segment_max segment_mean
    segment_min segment_prod segment_sum sigmoid sign sin sinh softplus sqrt square squared_difference subtract tan
    tanh top_k truediv unsorted_segment_max unsorted_segment_mean unsorted_segment_min unsorted_segment_prod
    unsorted_segment_sum xdivy xlog1py xlogy zero_fraction
"""
_NN = """
    avg_pool avg_pool1d avg_pool2d avg_pool3d batch_normalization bias_add conv1d conv1d_transpose conv2d
    conv2d_transpose conv3d conv3d_transpose conv_transpose convolution crelu depth_to_space depthwise_conv2d
    depthwise_conv2d_native dilation2d dropout elu embedding_lookup gelu l2_loss l2_normalize leaky_relu
    local_response_normalization log_softmax lrn max_pool max_pool1d max_pool2d max_pool3d moments normalize_moments
    pool relu relu6 selu separable_conv2d silu softmax softplus softsign space_to_batch space_to_depth swish top_k
    weighted_moments xw_plus_b zero_fraction
"""
_PLAIN = """
    argsort batch_to_space boolean_mask broadcast_dynamic_shape broadcast_to cast clip_by_norm clip_by_value concat
    dynamic_partition dynamic_stitch einsum ensure_shape expand_dims eye fill gather gather_nd grad_pass_through
    identity identity_n linspace meshgrid norm one_hot ones ones_like pad range rank realdiv repeat reshape reverse
    reverse_sequence roll scatter_nd searchsorted sequence_mask shape shape_n size slice sort space_to_batch
    space_to_batch_nd split squeeze stack stop_gradient strided_slice tensor_scatter_nd_add tensor_scatter_nd_max
    tensor_scatter_nd_min tensor_scatter_nd_sub tensor_scatter_nd_update tensordot tile transpose truncatediv
    truncatemod unique unique_with_counts unstack where zeros zeros_like
"""
_GROUPS = {
    "math.": _MATH,
    "nn.": _NN,
    "": _PLAIN,
    "compat.v1.": "batch_gather div div_no_nan floor_div to_bfloat16 to_double to_float to_int32 to_int64 where_v2",
    "__operators__.": "add getitem",
    "bitwise.": "bitwise_and bitwise_or bitwise_xor invert left_shift right_shift",
    "dtypes.": "cast complex saturate_cast",
    "image.": """
        adjust_brightness adjust_contrast adjust_gamma adjust_hue adjust_saturation central_crop
        combined_non_max_suppression convert_image_dtype crop_and_resize crop_to_bounding_box extract_patches
        flip_left_right flip_up_down grayscale_to_rgb hsv_to_rgb image_gradients non_max_suppression
        non_max_suppression_padded non_max_suppression_with_scores pad_to_bounding_box per_image_standardization resize
        resize_area resize_bicubic resize_bilinear resize_images resize_nearest_neighbor resize_with_crop_or_pad
        resize_with_pad rgb_to_grayscale rgb_to_hsv rgb_to_yiq rgb_to_yuv rot90 sobel_edges total_variation transpose
        yiq_to_rgb yuv_to_rgb
    """,
    "linalg.": """
        adjoint band_part cholesky cross det diag diag_part einsum eye global_norm inv l2_normalize matmul
        matrix_transpose matvec norm normalize set_diag solve tensor_diag tensor_diag_part tensordot trace
        triangular_solve
    """,
    "quantization.": """
        fake_quant_with_min_max_args fake_quant_with_min_max_vars fake_quant_with_min_max_vars_per_channel
        quantize_and_dequantize_v2
    """,
    "random.": "normal stateless_normal stateless_truncated_normal stateless_uniform truncated_normal uniform",
    "signal.": """
        dct fft fft2d fft3d frame hamming_window hann_window idct ifft ifft2d ifft3d inverse_stft irfft irfft2d irfft3d
        linear_to_mel_weight_matrix mfccs_from_log_mel_spectrograms overlap_and_add rfft rfft2d rfft3d stft
    """,
}

#: Names of the types of numbers.
DTYPES = frozenset(
    (
        *("bool", "complex64", "complex128", "float", "double", "half", "bfloat16", "float16", "float32", "float64"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
)
_FORMATS = frozenset(("NHWC", "NCHW", "NWC", "NCW", "NDHWC", "NCDHW", "channels_last", "channels_first"))
_RESIZES = frozenset(("area", "bicubic", "bilinear", "gaussian", "lanczos3", "lanczos5", "mitchellcubic", "nearest"))

#: What a string may be, by the parameter it is for: a set of words or a pattern of the whole.
_WORDS: dict[str, frozenset[str] | re.Pattern[str]] = {
    "data_format": _FORMATS,
    "dtype": DTYPES,
    "indexing": frozenset(("xy", "ij")),
    "name": re.compile(r"[\w.\\/:>-]{0,500}"),
    "out_type": DTYPES,
    "output_type": DTYPES,
    "padding": frozenset(("SAME", "VALID", "same", "valid")),
    "side": frozenset(("left", "right")),
}
#: The same of single functions.
_OWN_WORDS: dict[str, dict[str, frozenset[str] | re.Pattern[str]]] = {
    "argsort": {"direction": frozenset(("ASCENDING", "DESCENDING"))},
    "einsum": {
        "equation": re.compile(r"[A-Za-z.,> -]{1,500}"),
        "optimize": frozenset(("greedy", "optimal", "branch-2", "branch-all", "auto")),
    },
    "image.crop_and_resize": {"method": _RESIZES},
    "image.resize": {"method": _RESIZES},
    "image.resize_with_pad": {"method": _RESIZES},
    "linalg.norm": {"ord": frozenset(("euclidean", "fro"))},
    "norm": {"ord": frozenset(("euclidean", "fro"))},
    "pad": {"mode": frozenset(("CONSTANT", "REFLECT", "SYMMETRIC", "constant", "reflect", "symmetric"))},
    "sort": {"direction": frozenset(("ASCENDING", "DESCENDING"))},
}


@functools.cache
def _table() -> dict[int, str]:
    """Returns by the id of a function one of its names above."""
    table: dict[int, str] = {}
    for prefix, names in _GROUPS.items():
        for name in names.split():
            for alias in (f"{prefix}{name}", f"compat.v1.{prefix}{name}"):
                function = tf_export.get_symbol_from_name(alias)
                if function is not None:
                    table.setdefault(id(function), f"{prefix}{name}")
    return table


def _known(name: Any) -> tuple[Any, str] | None:
    function = tf_export.get_symbol_from_name(name) if isinstance(name, str) else None
    found = _table().get(id(function)) if function is not None else None
    return None if found is None else (function, found)


def is_pure(name: Any) -> bool:
    """Returns whether a name that TensorFlow exports is that of a function which computes on numbers alone."""
    return _known(name) is not None


def first_parameter(name: str) -> str:
    """Returns the name of the first parameter of a function; empty where it has none of its own."""
    known = _known(name)
    parameters = list(inspect.signature(known[0]).parameters.values()) if known else []
    return parameters[0].name if parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL else ""


def may_be(name: str, parameter: str, value: str) -> bool:
    """Returns whether a function may be given a string.

    Args:
      name: of the function, a pure one.
      parameter: for which it is.
      value: the string.
    """
    known = _known(name)
    own = _OWN_WORDS.get(known[1].removeprefix("compat.v1."), {}) if known else {}
    words = own.get(parameter, _WORDS.get(parameter, frozenset()))
    return value in words if isinstance(words, frozenset) else words.fullmatch(value) is not None
