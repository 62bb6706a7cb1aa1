"""What goes into the matrices of a model while it reads a text: the sums of the squares, by column.

Runs in the Python that has llama-cpp-python, beside `worker`. llama.cpp calls back for every operation of its graph;
of each multiplication with a matrix of a layer, the inputs are looked at. The sums are those of llama.cpp's own
imatrix program (tools/imatrix), but added up in 64 bits.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

_DIMENSIONS, _SOURCES, _NAME, _PARAMETERS = 4, 10, 64, 16
_F32 = 0
_FEWEST_ROWS = 16


class Tensor(ctypes.Structure):
    """struct ggml_tensor (ggml/include/ggml.h)."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * _DIMENSIONS),
    ("nb", ctypes.c_size_t * _DIMENSIONS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * _PARAMETERS),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * _SOURCES),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * _NAME),
]


class Collector:
    """Sums of squares and numbers of rows, by the name of the matrix; for experts, one after the other."""

    def __init__(self, ggml: ctypes.CDLL) -> None:
        self.sums: dict[str, Any] = {}
        self.counts: dict[str, Any] = {}
        self.failure = ""
        self._ggml = ggml
        ggml.ggml_op_name.restype = ctypes.c_char_p
        ggml.ggml_op_name.argtypes = [ctypes.c_int]
        ggml.ggml_get_name.restype = ctypes.c_char_p
        ggml.ggml_get_name.argtypes = [ctypes.c_void_p]
        ggml.ggml_backend_buffer_is_host.restype = ctypes.c_bool
        ggml.ggml_backend_buffer_is_host.argtypes = [ctypes.c_void_p]

    def callback(self, address: int, ask: bool, _user: object) -> bool:
        """Called before (`ask`: is it wanted?) and after each operation. False afterwards ends the computation."""
        try:
            tensor = Tensor.from_address(address)
            if ask:
                return self._wanted(tensor)
            self._collect(tensor)
            return True
        except Exception as error:  # nothing may leave a callback that C code has called
            self.failure = f"{type(error).__name__}: {error}"
            return False

    def check_layout(self, tensor: Tensor) -> None:
        """Raise `RuntimeError` unless a tensor of this library is laid out as `Tensor` has it."""
        if self._ggml.ggml_get_name(ctypes.addressof(tensor)) != tensor.name:
            raise RuntimeError("this llama-cpp-python lays tensors out otherwise than 0.3.36 does: use that")

    def _wanted(self, tensor: Tensor) -> bool:
        self.check_layout(tensor)
        operation = self._ggml.ggml_op_name(tensor.op)
        if operation == b"MUL_MAT_ID":
            return True
        if operation != b"MUL_MAT":
            return False
        weights, inputs = tensor.src[0].contents, tensor.src[1].contents
        return _name(weights).startswith("blk.") and inputs.type == _F32 and inputs.ne[1] >= _FEWEST_ROWS

    def _collect(self, tensor: Tensor) -> None:
        weights, inputs = tensor.src[0].contents, tensor.src[1].contents
        values = self._values(inputs, np.float32)
        squares = np.square(values, dtype=np.float64)
        if self._ggml.ggml_op_name(tensor.op) == b"MUL_MAT_ID":
            self._add_experts(_name(weights), int(weights.ne[2]), tensor.src[2].contents, squares)
        else:
            self._add(_name(weights), weights, squares)

    def _values(self, tensor: Tensor, dtype: type) -> Any:
        """The elements, the outermost dimension first, as they lie in memory."""
        if not self._ggml.ggml_backend_buffer_is_host(tensor.buffer):
            raise RuntimeError("a tensor lies outside the machine's own memory")
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        length = sum((count - 1) * step for count, step in zip(shape, strides, strict=True)) + 4
        raw = (ctypes.c_char * length).from_address(tensor.data)
        return np.ndarray(shape, dtype, raw, strides=strides)

    def _add(self, name: str, weights: Tensor, squares: Any) -> None:
        outer, matrices = int(weights.ne[3]), int(weights.ne[2])
        columns = squares.shape[3]
        sums = self.sums.setdefault(name, np.zeros((outer * matrices, columns)))
        counts = self.counts.setdefault(name, np.zeros(1, np.int64))
        for third in range(squares.shape[0]):
            for second in range(squares.shape[1]):
                sums[third % outer * matrices + second % matrices] += squares[third, second].sum(axis=0)
        counts[0] += squares[..., 0].size // (outer * matrices)

    def _add_experts(self, name: str, experts: int, chosen: Tensor, squares: Any) -> None:
        rows = squares[0]  # by token, then by chosen expert (or one for all of them), then by column
        ids = self._values(chosen, np.int32)[0, 0]
        sums = self.sums.setdefault(name, np.zeros((experts, rows.shape[-1])))
        counts = self.counts.setdefault(name, np.zeros(experts, np.int64))
        for place in range(ids.shape[1]):
            np.add.at(sums, ids[:, place], rows[:, place % rows.shape[1]])
            np.add.at(counts, ids[:, place], 1)


def _name(tensor: Tensor) -> str:
    """The name of the weight itself: a scheduler writes copies as ``CPU#blk.0.attn_k.weight#0``."""
    parts: list[str] = tensor.name.decode().split("#")
    return parts[1] if len(parts) > 1 else parts[0]


def collect(llama_cpp: Any, request: dict[str, Any], answers: Any) -> None:
    """Read the text ``request["text"]`` with the model ``request["source"]`` by chunks; write the sums and counts.

    ``request["target"]`` gets, for each matrix, its sums and then its counts, as F32; the answer ``{"entries": …}``
    says which. Raises `RuntimeError`.
    """
    model = _model(llama_cpp, request["source"])
    collector = Collector(ctypes.CDLL(str(_library(llama_cpp))))
    callback = llama_cpp.ggml_backend_sched_eval_callback(collector.callback)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    tokens = _tokens(llama_cpp, vocabulary, Path(request["text"]).read_bytes())
    size = request["chunk_size"]
    chunks = len(tokens) // size
    if not chunks:
        raise RuntimeError(f"the text is only {len(tokens)} tokens long: at least {size}, one chunk, are needed")
    chunks = min(chunks, request["chunks"] or chunks)
    context = _context(llama_cpp, model, size, request["threads"], callback)
    first = llama_cpp.llama_vocab_bos(vocabulary) if llama_cpp.llama_vocab_get_add_bos(vocabulary) else None
    batch = llama_cpp.llama_batch_init(size, 0, 1)
    for number in range(chunks):
        _fill(batch, tokens[number * size : (number + 1) * size], first)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        status = llama_cpp.llama_decode(context, batch)
        if status or collector.failure:
            raise RuntimeError(collector.failure or f"llama.cpp could not read chunk {number + 1} (status {status})")
        answers.send(at=number + 1, of=chunks)
    _write(collector, Path(request["target"]), chunks, answers)


def _model(llama_cpp: Any, path: str) -> Any:
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {Path(path).name}")
    return model


def _library(llama_cpp: Any) -> Path:
    return next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so*"))


def _context(llama_cpp: Any, model: Any, size: int, threads: int, callback: Any) -> Any:
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = size
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.cb_eval = callback
    parameters.cb_eval_user_data = None
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        raise RuntimeError(f"llama.cpp cannot set up a context of {size} tokens")
    return context


def _tokens(llama_cpp: Any, vocabulary: Any, text: bytes) -> list[int]:
    found = (llama_cpp.llama_token * (len(text) + 16))()
    count = llama_cpp.llama_tokenize(vocabulary, text, len(text), found, len(found), True, False)
    if count < 0:
        raise RuntimeError("llama.cpp cannot read the text")
    return list(found[:count])


def _fill(batch: Any, tokens: list[int], first: int | None) -> None:
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place] = first if first is not None and place == 0 else token
        batch.pos[place] = place
        batch.n_seq_id[place] = 1
        batch.seq_id[place][0] = 0
        batch.logits[place] = True  # of every token: else the last layer reads only the last one


def _write(collector: Collector, target: Path, chunks: int, answers: Any) -> None:
    entries = []
    with target.open("wb") as stream:
        for name in sorted(collector.sums):
            sums, counts = collector.sums[name].astype("<f4"), collector.counts[name].astype("<f4")
            if not np.isfinite(sums).all():
                raise RuntimeError(f"the inputs of {name} are not all finite numbers")
            # One count stands for all matrices of a tensor that every row goes through.
            matrices = len(counts)
            stream.write(sums.tobytes() + counts.tobytes())
            entries.append([name, matrices, sums.size // matrices])
    if not entries:
        raise RuntimeError("no matrix of this model was used: is it a text model?")
    answers.send(entries=entries, chunks=chunks)
