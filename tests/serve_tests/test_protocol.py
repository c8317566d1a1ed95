"""The protocol: whatever a client encodes is what the model gets, and scores come back bit by bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from objectives.serving.http.datatypes import convert_exactly
from objectives.serving.http.json_data import RequestError
from objectives.serving.http.protocol import read_request, write_response
from tests.serve_tests import oracle

DTYPES = st.sampled_from([dtype for dtype, _ in oracle.TYPES.values()])
SHAPES = arrays_of.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


def finite(dtype: str) -> st.SearchStrategy[np.ndarray]:
    limits = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else {}
    return arrays_of.arrays(dtype, SHAPES, elements=arrays_of.from_dtype(np.dtype(dtype), **limits))


TENSORS = DTYPES.flatmap(finite)
REQUESTS = st.dictionaries(st.text(min_size=1, max_size=5), TENSORS, min_size=1, max_size=3)


def same(found: Any, sent: dict[str, np.ndarray]) -> bool:
    return list(found) == list(sent) and all(
        found[n].dtype == v.dtype and found[n].shape == v.shape and found[n].tobytes() == v.tobytes()
        for n, v in sent.items()
    )


@given(REQUESTS)
def test_binary_tensors_arrive_as_sent(sent: dict[str, np.ndarray]) -> None:
    body, headers = oracle.binary_request(sent)
    assert same(read_request(body, headers[oracle.LENGTH], ("scores",)).inputs, sent)


@given(REQUESTS)
def test_a_header_that_comes_again_goes_with_its_own_tensors(sent: dict[str, np.ndarray]) -> None:
    """The JSON in front of both bodies is the same, and is read once only."""
    other = {name: np.flip(values) for name, values in sent.items()}
    (body, headers), (again, same_headers) = oracle.binary_request(sent), oracle.binary_request(other)
    length = int(headers[oracle.LENGTH])
    assert body[:length] == again[:length] and headers == same_headers
    for one, arrays in ((body, sent), (again, other), (body, sent)):
        assert same(read_request(one, headers[oracle.LENGTH], ("scores",)).inputs, arrays)


@given(REQUESTS, st.booleans())
def test_json_tensors_arrive_as_sent(sent: dict[str, np.ndarray], nested: bool) -> None:
    plain = {"inputs": [oracle.json_tensor(name, values, nested) for name, values in sent.items()], "id": "7"}
    found = read_request(json.dumps(plain).encode(), None, ("scores",))
    assert same(found.inputs, sent) and (found.id, found.binary) == ("7", False)


@given(arrays_of.arrays("float32", st.integers(1, 9), elements=st.floats(-(2.0**99), 2.0**99, width=32)), st.booleans())
def test_scores_come_back_bit_by_bit(scores: np.ndarray, binary: bool) -> None:
    request = read_request(
        json.dumps(oracle.json_request({"x": np.ones(1)}, id="a", parameters={"binary_data_output": binary})).encode(),
        None,
        ("scores",),
    )
    encoded = write_response("toy", "3", request, "scores", scores)
    plain, found = oracle.read_scores(encoded.body, str(encoded.json_bytes) if binary else None)
    assert (encoded.json_bytes is not None) == binary
    assert (plain["model_name"], plain["model_version"], plain["id"]) == ("toy", "3", "a")
    assert found.tobytes() == scores.tobytes() and plain["outputs"][0]["name"] == "scores"


@pytest.mark.parametrize(
    ("parameters", "output", "binary"),
    [(None, None, False), (True, None, True), (True, False, False), (False, True, True), (None, True, True)],
)
def test_an_outputs_own_parameter_comes_before_the_requests(
    parameters: bool | None, output: bool | None, binary: bool
) -> None:
    plain = oracle.json_request({"x": np.ones(1)})
    plain |= {} if parameters is None else {"parameters": {"binary_data_output": parameters}}
    own = {} if output is None else {"parameters": {"binary_data": output}}
    plain["outputs"] = [{"name": "scores", **own}]
    assert read_request(json.dumps(plain).encode(), None, ("scores",)).binary == binary


@given(st.binary(max_size=80), st.none() | st.integers(-2, 90).map(str) | st.text(max_size=4))
def test_any_bytes_are_read_or_refused_in_one_line(body: bytes, length: str | None) -> None:
    refused_in_one_line(body, length)


@given(REQUESTS, st.data())
def test_a_damaged_request_is_read_or_refused_in_one_line(sent: dict[str, np.ndarray], data: st.DataObject) -> None:
    body, headers = oracle.binary_request(sent)
    at = data.draw(st.integers(0, len(body) - 1))
    damaged = body[:at] + data.draw(st.binary(max_size=2)) + body[at + data.draw(st.integers(0, 2)) :]
    refused_in_one_line(damaged, headers[oracle.LENGTH])


@given(
    st.lists(st.sampled_from([1, 2**16, 2**30, 2**31 - 1]), min_size=1, max_size=7),
    st.sampled_from(sorted(oracle.TYPES)),
    st.booleans(),
)
def test_an_empty_tensor_is_of_a_shape_that_numpy_has_or_is_refused(
    shape: list[int], datatype: str, binary: bool
) -> None:
    shape, dtype = [*shape, 0], np.dtype(oracle.TYPES[datatype][0])
    tensor: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": shape}
    tensor |= {"parameters": {"binary_data_size": 0}} if binary else {"data": []}
    body = json.dumps({"inputs": [tensor]}).encode()
    length = str(len(body)) if binary else None
    try:
        expected = np.empty(0, dtype).reshape(shape)
    except ValueError:
        with pytest.raises(RequestError, match="input x: shape: must be of fewer than"):
            read_request(body, length, ("scores",))
    else:
        assert read_request(body, length, ("scores",)).inputs["x"].shape == expected.shape


def refused_in_one_line(body: bytes, length: str | None) -> None:
    try:
        read_request(body, length, ("scores",))
    except RequestError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 500


@given(TENSORS, DTYPES)
def test_a_conversion_keeps_every_value_or_is_refused(values: np.ndarray, dtype: str) -> None:
    """Python's own numbers, which have no limits, are the oracle."""
    families = {np.dtype(kind).kind.replace("u", "i") for kind in (values.dtype, dtype)}
    with np.errstate(over="ignore"):
        kept = len(families) == 1 and values.astype(dtype).ravel().tolist() == values.ravel().tolist()
    if kept:
        assert convert_exactly(values, np.dtype(dtype)).tolist() == values.tolist()
    else:
        with pytest.raises(ValueError, match="but got"):
            convert_exactly(values, np.dtype(dtype))
