#!/usr/bin/env python3
"""Golden numbers for the perplexity protocols `gptq`, `llama.cpp` and `document`, and for a comparison with the original.

    python scripts/oracle/protocol_golden.py > harness/tests/fixtures/protocols.json

Needs torch, transformers and numpy. The model is models/assets/tiny-llama in float32, the text the beginning of the
built-in held-out stories. Windows are cut here by loops of their own, straight from the protocols' descriptions:

  gptq        disjoint windows of one stream, BOS in front of each; every token behind it is scored
  llama.cpp   disjoint chunks of one stream that begins with BOS; the first token of each is overwritten by BOS; the logits
              of places n/2 … n-2 are scored (perplexity.cpp: first = n_ctx/2, n_ctx-1-first tokens)
  document    per document: the first token is context and never scored; windows of so many inputs, of which later ones
              begin one token before what they score, and the last keeps all the context that fits; BOS in front of each,
              not counted (arXiv 2405.14428, act_spike/eval.py)

The quantized model has its block linears rounded to 4 bits per output channel, symmetric, by numpy; KL divergence,
agreement and the difference of log-perplexities are computed in float64 from full logits.
"""

import json
import sys
from pathlib import Path

import numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ASSETS = Path(__file__).resolve().parents[2] / "models/assets"
STORIES = 6
LENGTH = {"gptq": 128, "llama.cpp": 64, "document": 50}


def log_softmax(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return torch.log_softmax(logits, dim=-1)


def gptq(stream, bos, length):
    body = length - 1
    for start in range(0, len(stream) - body + 1, body):
        fed = [bos] + stream[start : start + body]
        yield fed, 0, fed[1:]


def llama_cpp(stream, bos, length):
    for start in range(0, len(stream) - length + 1, length):
        fed = [bos] + stream[start + 1 : start + length]
        yield fed, length // 2, fed[length // 2 + 1 :]


def document(tokens, bos, length):
    done = 1
    while done < len(tokens):
        end = min(len(tokens), done + length)
        # The first window has what there is; later ones the full length before their last target.
        start = 0 if done == 1 else end - length - 1
        fed = [bos] + tokens[start : end - 1]
        targets = tokens[done:end]
        yield fed, len(fed) - len(targets), targets
        done = end


def losses(model, windows):
    found = []
    for fed, first, targets in windows:
        scores = log_softmax(model, fed)[first : first + len(targets)]
        found.append([-float(scores[i, token]) for i, token in enumerate(targets)])
    return found


def rounded(weight):
    """4 bits, symmetric, one scale a row: scale = max |w| / 7, half to even."""
    values = weight.detach().numpy().astype(numpy.float32)
    scale = numpy.abs(values).max(axis=1, keepdims=True) / numpy.float32(7)
    return torch.from_numpy(numpy.clip(numpy.rint(values / scale), -7, 7) * scale)


def main():
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny-llama")
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny-llama", dtype=torch.float32)
    text = (ASSETS / "stories/held-out.txt").read_text()
    documents = text.strip().split("\n\n")[:STORIES]
    text = "\n\n".join(documents)
    bos = tokenizer.bos_token_id
    stream = tokenizer(text, add_special_tokens=False).input_ids
    special = tokenizer(text).input_ids
    assert special[0] == bos, "the tokenizer adds BOS"
    per_document = [tokenizer(document, add_special_tokens=False).input_ids for document in documents]
    windows = {
        "gptq": list(gptq(stream, bos, LENGTH["gptq"])),
        "llama.cpp": list(llama_cpp(special, bos, LENGTH["llama.cpp"])),
        "document": [w for tokens in per_document for w in document(tokens, bos, LENGTH["document"])],
    }
    golden = {"documents": documents, "length": LENGTH, "perplexity": {}, "scored": {}, "windows": {}}
    for name, cut in windows.items():
        all_losses = losses(model, cut)
        flat = [loss for window in all_losses for loss in window]
        golden["scored"][name] = len(flat)
        golden["windows"][name] = len(cut)
        golden["perplexity"][name] = float(numpy.exp(numpy.mean(flat)))
        if name == "llama.cpp":
            variance = numpy.mean(numpy.square(flat)) - numpy.mean(flat) ** 2
            golden["llama.cpp-uncertainty"] = float(
                golden["perplexity"][name] * numpy.sqrt(variance / (len(flat) - 1))
            )

    quantized = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny-llama", dtype=torch.float32)
    for block in quantized.model.layers:
        for part in (block.self_attn, block.mlp):
            for linear in part.children():
                if isinstance(linear, torch.nn.Linear):
                    linear.weight.data = rounded(linear.weight)
    kl, same, delta = [], [], []
    for fed, first, targets in windows["gptq"]:
        p = log_softmax(model, fed)[first : first + len(targets)]
        q = log_softmax(quantized, fed)[first : first + len(targets)]
        kl.append((p.exp() * (p - q)).sum(dim=-1).numpy())
        same.append((p.argmax(dim=-1) == q.argmax(dim=-1)).numpy())
        place = torch.tensor(targets)
        delta.append((p - q)[torch.arange(len(targets)), place].numpy())
    all_kl = numpy.concatenate(kl)
    # Windows of one length: the clustered error is that of the windows' means.
    clustered = lambda windows: float(numpy.std([w.mean() for w in windows], ddof=1) / numpy.sqrt(len(windows)))
    golden["against"] = {
        "kl": float(all_kl.mean()),
        "kl-stderr": clustered(kl),
        "kl-median": float(numpy.median(all_kl)),
        "kl-p99": float(numpy.quantile(all_kl, 0.99)),
        "kl-max": float(all_kl.max()),
        "same-top": float(numpy.concatenate(same).mean()),
        "delta": float(numpy.concatenate(delta).mean()),
        "delta-stderr": clustered(delta),
    }
    json.dump(golden, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
