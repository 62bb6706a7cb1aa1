"""The model loader that vLLM runs in each of its workers."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

from .client import Runner, WeightFile
from .tensors import Lazy, whole


class StreamLoader(DefaultModelLoader):  # type: ignore[misc]
    """vLLM's own loader, but for where tensors come from: files that are filled while they are read."""

    def __init__(self, load_config: Any) -> None:
        stated = copy.copy(load_config)
        stated.load_format = "safetensors"  # which files are the model's is decided as for any safetensors model
        super().__init__(stated)

    def _get_weights_iterator(self, source: DefaultModelLoader.Source) -> Iterator[tuple[str, torch.Tensor]]:
        folder, files, is_safetensors, _ = self._prepare_weights(
            source.model_or_path, source.subfolder, source.revision, source.fall_back_to_pt,
            source.allow_patterns_overrides,
        )  # fmt: skip
        if not is_safetensors:
            raise RuntimeError(f"only safetensors files can be streamed, and {folder} would be read from {files}")
        self.counter_before_loading_weights: float = self.counter_before_loading_weights or time.perf_counter()
        return self._tensors(source, [Path(file) for file in sorted(files)])

    def _tensors(self, source: DefaultModelLoader.Source, files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
        make = Lazy if get_tensor_model_parallel_world_size() > 1 else whole
        runner = Runner(os.environ["STOWAGE_STREAM"])
        for path in files:
            file = WeightFile(runner, path, os.path.relpath(path, source.model_or_path))
            for entry in file.entries():
                unused = source.is_unused_weight is not None and source.is_unused_weight(entry.name)
                if not unused and not should_skip_weight(entry.name, self.local_expert_ids):
                    yield source.prefix + entry.name, make(file, entry)
