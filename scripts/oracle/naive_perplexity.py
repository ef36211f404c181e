# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "safetensors>=0.5", "tokenizers>=0.21", "numpy>=2"]
# ///
"""Perplexity of a Llama folder, original and quantized, from the formulas alone: an oracle for the whole pipeline.

    naive_perplexity.py MODEL_DIR TEXT [--wikitext] [--last-chars N] [--windows N] [--length L]
                        [--bos tokenizer|every|none] [--recipes NAME,NAME...]

Protocol `gptq`: the text is encoded once and cut into disjoint windows of L tokens; a window's loss is the mean
cross-entropy of its L - 1 predictions; perplexity is exp of the mean loss over windows.

    --bos tokenizer   encode with the tokenizer's special tokens: BOS, if it adds one, stands once, at the start
    --bos none        encode without special tokens
    --bos every       encode without; each window is BOS and the next L - 1 tokens of text; BOS is never predicted

`--wikitext` joins a raw WikiText file as the papers' loaders do: lines keep their newline, a blank line becomes "", and
"\\n\\n" stands between them.

Quantization: symmetric integer grid, scale = max|x| / qmax with qmax = 2^(bits-1) - 1, rounding half to even, clamped
to [-qmax, qmax]; all zeros stay zeros. Weights per output channel (`wN`) or per tensor (`wN-tensor`); activations of
the four inputs of linears (attn_in, o_in, mlp_in, down_in) dynamically, per token or per window. Embeddings, norms,
attention and lm_head stay in floating point. All in f32. Prints JSON.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

# name: (weight bits, weights per, activation bits, activations per)
RECIPES = {
    "original": (None, None, None, None),
    "w8a16": (8, "channel", None, None),
    "w8a8-token": (8, "channel", 8, "token"),
    "w8a8-tensor": (8, "channel", 8, "tensor"),
    "w4a16": (4, "channel", None, None),
    "w4a8-token": (4, "channel", 8, "token"),
    "w4a8-tensor": (4, "channel", 8, "tensor"),
    "w8-tensor-a16": (8, "tensor", None, None),
    "w8-tensor-a8-token": (8, "tensor", 8, "token"),
}


def quantize(x, bits, per):
    """`x` on its grid. What shares a scale: a row of the last axis (`channel`, `token`), or all of `x` (`tensor`)."""
    if bits is None:
        return x
    qmax = 2 ** (bits - 1) - 1
    scale = (x.abs().max() if per == "tensor" else x.abs().amax(-1, keepdim=True)) / qmax
    scale = torch.where(scale == 0, 1.0, scale)
    return (x / scale).round().clamp(-qmax, qmax) * scale


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x, cos, sin):
    """RoPE on [heads, tokens, head_dim]: pairs are (i, i + head_dim / 2)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Llama:
    """The forward pass of one window, with weights and linear inputs on the recipe's grids."""

    def __init__(self, folder, recipe):
        self.config = json.loads((folder / "config.json").read_text())
        if self.config["model_type"] != "llama" or self.config.get("rope_scaling"):
            raise SystemExit(f"{folder}: this oracle knows the Llama architecture without RoPE scaling")
        self.weights = {k: w.float() for k, w in load_file(folder / "model.safetensors").items()}
        bits, per, self.activation_bits, self.activation_per = RECIPES[recipe]
        for name, w in self.weights.items():
            if name.endswith("_proj.weight"):
                self.weights[name] = quantize(w, bits, per)

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def site(self, x):
        return quantize(x, self.activation_bits, self.activation_per)

    def attention(self, x, block, cos, sin):
        c, tokens = self.config, x.shape[0]
        heads = c["num_attention_heads"]
        kv_heads = c.get("num_key_value_heads", heads)
        q, k, v = (self.linear(x, f"{block}.self_attn.{p}_proj") for p in "qkv")
        q, k, v = (t.view(tokens, -1, self.head_dim()).transpose(0, 1) for t in (q, k, v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(heads // kv_heads, 0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / self.head_dim() ** 0.5
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        return self.linear(self.site(mixed.transpose(0, 1).reshape(tokens, -1)), f"{block}.self_attn.o_proj")

    def mlp(self, x, block):
        hidden = F.silu(self.linear(x, f"{block}.mlp.gate_proj")) * self.linear(x, f"{block}.mlp.up_proj")
        return self.linear(self.site(hidden), f"{block}.mlp.down_proj")

    def head_dim(self):
        return self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"]

    def logits(self, tokens):
        c, w = self.config, self.weights
        eps, dim = c["rms_norm_eps"], self.head_dim()
        frequencies = c.get("rope_theta", 10000.0) ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angles = torch.outer(torch.arange(len(tokens), dtype=torch.float32), frequencies)
        cos, sin = angles.cos(), angles.sin()
        x = w["model.embed_tokens.weight"][tokens]
        for i in range(c["num_hidden_layers"]):
            block = f"model.layers.{i}"
            x = x + self.attention(self.site(rms_norm(x, w[f"{block}.input_layernorm.weight"], eps)), block, cos, sin)
            x = x + self.mlp(self.site(rms_norm(x, w[f"{block}.post_attention_layernorm.weight"], eps)), block)
        head = w["model.embed_tokens.weight"] if c.get("tie_word_embeddings") else w["lm_head.weight"]
        return F.linear(rms_norm(x, w["model.norm.weight"], eps), head)


def read_text(path, wikitext, last_chars):
    text = Path(path).read_text(encoding="utf-8")
    if wikitext:
        # Only "\n" ends a line: str.splitlines would also split at form feeds and other separators.
        lines = text.split("\n")
        rows = [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
        text = "\n\n".join(row if row.strip() else "" for row in rows)
    return text[-last_chars:] if last_chars else text


def cut_windows(folder, text, length, count, bos):
    """The stream's token ids, and its first `count` windows."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=bos == "tokenizer").ids
    head = [json.loads((folder / "config.json").read_text())["bos_token_id"]] if bos == "every" else []
    step = length - len(head)
    windows = [head + ids[i * step : (i + 1) * step] for i in range(len(ids) // step)][:count]
    return ids, windows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text")
    parser.add_argument("--wikitext", action="store_true")
    parser.add_argument("--last-chars", type=int)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--bos", choices=["tokenizer", "every", "none"], default="tokenizer")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    args = parser.parse_args()

    text = read_text(args.text, args.wikitext, args.last_chars)
    ids, windows = cut_windows(args.model, text, args.length, args.windows, args.bos)
    out = {"stream_tokens": len(ids), "windows": len(windows), "length": args.length, "bos": args.bos}
    out |= {"first_tokens": windows[0][:8], "results": {}}
    for recipe in args.recipes.split(","):
        model = Llama(args.model, recipe)
        losses = []
        for window in windows:
            tokens = torch.tensor(window)
            with torch.inference_mode():
                losses.append(F.cross_entropy(model.logits(tokens)[:-1], tokens[1:]).double().item())
        perplexity = torch.tensor(losses, dtype=torch.float64).mean().exp().item()
        out["results"][recipe] = {"perplexity": perplexity, "window_nll": losses}
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
