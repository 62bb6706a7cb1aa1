"""What transformers makes of the real SmolLM2 in fp32. Runs in the environment `oracle.py` builds.

Argument: the checkpoint's folder. Prints JSON: for each text its tokens, and the likeliest next tokens with their log
probabilities.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
)
LIKELIEST = 200


@torch.inference_mode()
def main() -> None:
    folder = sys.argv[1]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    answers: list[dict[str, Any]] = []
    for text in TEXTS:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        values = torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1].double(), -1)
        best = torch.topk(values, LIKELIEST)
        likeliest = dict(zip(best.indices.tolist(), [round(value, 7) for value in best.values.tolist()], strict=True))
        answers.append({"text": text, "tokens": tokens, "likeliest": likeliest})
    print(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__, "answers": answers}))


if __name__ == "__main__":
    main()
