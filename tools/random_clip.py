"""Write a CLIP ViT-B/32 model folder with random weights, for `benchmarks peer` (docs/comparison.md).

python tools/random_clip.py FOLDER    # in the environment of the other server
"""

import json
import sys
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

out = Path(sys.argv[1])
torch.manual_seed(0)
CLIPModel(CLIPConfig()).save_pretrained(out)
# Only images are embedded, but CLIPProcessor requires a tokenizer.
(out / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}))
(out / "merges.txt").write_text("#version: 0.2\n")
tokenizer = CLIPTokenizer(str(out / "vocab.json"), str(out / "merges.txt"))
CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(out)
