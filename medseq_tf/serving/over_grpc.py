"""A model behind TensorFlow Serving's gRPC interface, `PredictionService.Predict`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import EncodeError

from medseq_tf.errors import InputError
from medseq_tf.serving.messages import decode_predict_response, encode_predict_request
from medseq_tf.serving.over_rest import LARGEST_RESPONSE_BYTES
from medseq_tf.serving.refusals import (
    RequestRefused,
    TransientError,
    not_serving,
    readable,
    refusal,
    too_large,
)

METHOD = "/tensorflow.serving.PredictionService/Predict"

_TRANSIENT_CODES = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
_TOO_LARGE = re.compile(r"received message.*larger than max", re.IGNORECASE)


class GrpcModel:
    """A served model, asked over gRPC.

    Args:
        address: what errors call it.
        target: `host:port`.
        model: the name that it is served under.
        seconds: the longest that one request may take.

    Raises:
        InputError: grpcio is not installed.
    """

    def __init__(self, address: str, target: str, model: str, seconds: float):
        try:
            import grpc
        except ImportError:
            raise InputError(
                f"{address}: gRPC needs the package grpcio (pip install grpcio); or use the REST "
                "address, http://host:8501/v1/models/NAME"
            ) from None
        self.address, self.model, self.seconds = address, model, seconds
        sizes = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", LARGEST_RESPONSE_BYTES),
        ]
        self._error = grpc.RpcError
        self._predict = grpc.insecure_channel(target, sizes).unary_unary(METHOD)

    def __call__(
        self, signature: str, inputs: Mapping[str, Any], outputs: tuple[str, ...]
    ) -> Mapping[str, np.ndarray]:
        """Ask a signature for some outputs; a TransientError or ServingError says why not."""
        try:
            request = encode_predict_request(self.model, inputs, signature, outputs)
        except EncodeError:
            raise RequestRefused("the study has more bytes than a gRPC message may have") from None
        try:
            return decode_predict_response(self._predict(request, timeout=self.seconds))
        except ValueError:
            raise not_serving(self.address) from None
        except self._error as error:
            code, details = error.code().name, error.details() or ""
        if _TOO_LARGE.search(details):
            raise too_large(self.address)
        if code in _TRANSIENT_CODES:
            reason = "nobody answers there" if code == "UNAVAILABLE" else code.lower()
            raise TransientError(f"{reason} ({readable(details)})")
        if code == "UNIMPLEMENTED":
            raise not_serving(self.address)
        raise refusal(self.address, code, details)
