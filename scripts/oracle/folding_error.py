# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "transformers==5.23.0", "numpy>=2"]
# ///
"""Why a rotation of the residual stream can make 4-bit weights worse: what folding the norm's weight costs by itself.

    folding_error.py MODEL_DIR TEXT [--tokens 512] [--bits 4]

A rotation of the residual stream needs the norm's weight g folded into the linears behind it: W -> W diag(g). A linear
that reads x = g * n, with n the normalized row, then reads n, whose energy lies in channels that g may have made small.
For one window of the text, BOS in front, and every q, v, gate, up, o and down projection of a Llama, in f64:

    ||x (W - Q(W))'||^2 / ||x W'||^2       per token, Q: to nearest, scale per output channel, symmetric

the median over tokens, then over blocks, and below it the largest over blocks of the first token, BOS, which carries the
massive activations, for the weights as they are, folded, folded and rotated, and rotated without
folding (no model that can be computed without rotating in every block; it shows what the rotation does by itself). o and
down have no norm in front: folded means rotated on the output side, as the residual stream is. Rotations are random
orthogonal ones (QR, seeded), per head for o. Prints a Markdown table.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LINEARS = {
    "q_proj": "input_layernorm",
    "v_proj": "input_layernorm",
    "gate_proj": "post_attention_layernorm",
    "up_proj": "post_attention_layernorm",
    "o_proj": None,
    "down_proj": None,
}


def rotation(n):
    generator = torch.Generator().manual_seed(n)
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]


def rounded(w, bits):
    most = 2 ** (bits - 1) - 1
    scale = w.abs().amax(1, keepdim=True) / most
    return (w / scale).round().clamp(-most - 1, most) * scale


def error(x, w, bits):
    """Of the median token and of the first."""
    lost = (x @ (w - rounded(w, bits)).T).square().sum(1) / (x @ w.T).square().sum(1)
    return torch.stack([lost.median(), lost[0]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--bits", type=int, default=4)
    options = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    text = options.text.read_text(encoding="utf-8")[: 20 * options.tokens]
    ids = tokenizer(text, add_special_tokens=False).input_ids[: options.tokens - 1]
    ids = torch.tensor([[tokenizer.bos_token_id, *ids]])

    inputs = {}

    def remember(name):
        return lambda module, args: inputs.__setitem__(name, args[0][0].double())

    def of(block, name):
        return getattr(block.self_attn, name, None) or getattr(block.mlp, name)

    for layer, block in enumerate(model.model.layers):
        for name in LINEARS:
            of(block, name).register_forward_pre_hook(remember((layer, name)))
    with torch.no_grad():
        model(ids)

    hidden, head = model.config.hidden_size, model.config.head_dim
    residual, inner = rotation(hidden), rotation(model.config.intermediate_size)
    heads = torch.block_diag(*[rotation(head)] * model.config.num_attention_heads)
    print("| linear | as it is | folded | folded and rotated | rotated alone |\n|---|--:|--:|--:|--:|")
    for name, norm in LINEARS.items():
        found = []
        for layer, block in enumerate(model.model.layers):
            x, w = inputs[layer, name], of(block, name).weight.detach().double()
            if norm:
                g = getattr(block, norm).weight.detach().double()
                n, folded = x / g, w * g
                cases = [(x, w), (n, folded), (n @ residual, folded @ residual), (x @ residual, w @ residual)]
            else:
                side = heads if name == "o_proj" else inner
                out = residual.T @ w
                cases = [(x, w), (x, out), (x @ side, out @ side), (x @ side, w @ side)]
            found.append(torch.stack([error(*case, options.bits) for case in cases]))
        found = torch.stack(found)
        for what, values in (("median", found[..., 0].median(0).values), ("BOS, worst block", found[..., 1].amax(0))):
            print(f"| {name}, {what} | " + " | ".join(f"{100 * value:.2f} %" for value in values) + " |")


if __name__ == "__main__":
    main()
