"""What llama.cpp's own converter and transformers make of checkpoints. Runs in the environment `oracle.py` builds.

Arguments: the folder of llama.cpp's converter, a folder of checkpoints, a folder for the answers (JSON, one each).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:1] = [sys.argv[1], str(Path(sys.argv[1]) / "gguf-py")]  # instead of the folder of this file

import gguf  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from conversion import ModelBase, ModelType, TextModel, get_model_architecture, get_model_class  # noqa: E402

PRECISIONS = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
LENGTHS = (24, 48, 72, 96)
"""Prompts are this many tokens long; the longer ones exceed every window."""

SERVED_CONTEXT = 512
"""What llama.cpp is started with, by which it chooses between the long and the short factors of longrope;
transformers chooses by the length of the text."""

# A pre-tokenizer is known to llama.cpp by a digest of what a whole published tokenizer answers, so no tiny one is.
TextModel.get_vocab_base_pre = lambda self, tokenizer: "default"


def prompt(length: int) -> list[int]:
    return [(number * 37 + 11) % 300 for number in range(length)]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def converted(folder: Path, precision: str) -> gguf.GGUFReader:
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        target = Path(scratch) / "model.gguf"
        hparams = ModelBase.load_hparams(folder, False)
        model_class = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        model_class(folder, gguf.LlamaFileType[PRECISIONS[precision]], target).write()
        return gguf.GGUFReader(target)


def tensors(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {
        tensor.name: [tensor.tensor_type.name, [int(n) for n in reversed(tensor.shape)], digest(tensor.data.tobytes())]
        for tensor in reader.tensors
    }


def metadata(reader: gguf.GGUFReader) -> dict[str, Any]:
    """Everything about the architecture, and the vocabulary: lists as the digest of their JSON."""
    found = {}
    for key, field in reader.fields.items():
        if key.startswith(("GGUF.", "general.")) or key in ("tokenizer.ggml.pre", "tokenizer.chat_template"):
            continue
        value = field.contents()
        vocabulary = key.startswith("tokenizer.") and isinstance(value, list)
        found[key] = digest(json.dumps(value).encode()) if vocabulary else value
    return found


def loaded(folder: Path, auto: Any) -> Any:
    model, info = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), (folder.name, info)
    return model.eval()


def lengths(config: Any) -> list[int]:
    """Of the prompts for which both choose the same factors."""
    original = getattr(config, "original_max_position_embeddings", None) or SERVED_CONTEXT
    return [length for length in LENGTHS if length > original or original >= SERVED_CONTEXT]


@torch.inference_mode()
def answers(folder: Path) -> dict[str, Any]:
    """The log probabilities of all next tokens; of an embedding model the last layer, pooled and normalised."""
    if (folder / "modules.json").is_file():
        model = loaded(folder, transformers.AutoModel)
        states = {n: model(torch.tensor([prompt(n)])).last_hidden_state[0].double() for n in LENGTHS}
        settings = json.loads((folder / "1_Pooling" / "config.json").read_text())
        last = settings.get("pooling_mode_lasttoken")
        pooled = {n: state[-1] if last else state.mean(0) for n, state in states.items()}
        return {str(n): rounded(torch.nn.functional.normalize(vector, dim=0)) for n, vector in pooled.items()}
    model = loaded(folder, transformers.AutoModelForCausalLM)
    logits = {n: model(torch.tensor([prompt(n)])).logits[0, -1].double() for n in lengths(model.config)}
    return {str(n): rounded(torch.log_softmax(values, -1)) for n, values in logits.items()}


def rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 7) for value in values.tolist()]


def main() -> None:
    for folder in sorted(Path(sys.argv[2]).iterdir()):
        readers = {precision: converted(folder, precision) for precision in PRECISIONS}
        result = {
            "metadata": metadata(readers["F32"]),
            "tensors": {precision: tensors(reader) for precision, reader in readers.items()},
            "answers": answers(folder),
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        }
        (Path(sys.argv[3]) / f"{folder.name}.json").write_text(json.dumps(result))
        print(f"recorded {folder.name}", flush=True)


if __name__ == "__main__":
    main()
