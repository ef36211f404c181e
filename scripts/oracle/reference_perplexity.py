# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "transformers==5.23.0", "safetensors>=0.5", "tokenizers>=0.21", "numpy>=2"]
# ///
"""Perplexity of a folder of any family, as `transformers` computes it: an oracle for real checkpoints.

    reference_perplexity.py MODEL_DIR TEXT [--wikitext] [--windows N] [--length L] [--bos tokenizer|every|none]

Protocol and text as in naive_perplexity.py: disjoint windows of L tokens, mean cross-entropy of each window's L - 1
predictions, exp of the mean over windows. Eager attention in float32. Prints JSON, with the loss of every window and the
seconds that the passes took.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from naive_perplexity import cut_windows, read_text
from transformers import AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--wikitext", action="store_true")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--bos", choices=["tokenizer", "every", "none"], default="tokenizer")
    args = parser.parse_args()

    text = read_text(args.text, args.wikitext, None)
    _, windows = cut_windows(args.model, text, args.length, args.windows, args.bos)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager").eval()
    losses, start = [], time.perf_counter()
    with torch.no_grad():
        for window in windows:
            tokens = torch.tensor([window])
            logits = model(tokens, use_cache=False).logits[0, :-1]
            losses.append(F.cross_entropy(logits, tokens[0, 1:]).item())
    seconds = time.perf_counter() - start
    perplexity = torch.tensor(losses, dtype=torch.float64).mean().exp().item()
    print(json.dumps({"first": windows[0][:8], "losses": losses, "perplexity": perplexity, "seconds": seconds}))


if __name__ == "__main__":
    main()
