# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "transformers==5.23.0", "numpy>=2"]
# ///
"""Spike ratios and maxima of a model's activations, by `transformers` and forward hooks.

    activation_ratios.py MODEL_DIR TOKENS.json [--top N]

TOKENS.json is a list of lists of token ids, BOS included where it is wanted. For the input of q_proj, o_proj, up_proj
and down_proj of every layer (in f32, eager attention, one sequence at a time) it prints as JSON on stdout, greatest
ratio first:

    ratio     mean over sequences of max_t s_t / median_t s_t, s_t = max over channels of |x_t|, torch's lower median
    absmax    greatest |x|
    top       the N tokens (default 8) with the greatest s_t of all sequences: sample, position, token, scale

The example `activation_ratios` of the harness prints the same from its own statistics.
"""

import argparse
import json

import torch
from transformers import AutoModelForCausalLM

SITES = {
    "self_attn.q_proj": "attn_in",
    "self_attn.o_proj": "o_in",
    "mlp.up_proj": "mlp_in",
    "mlp.down_proj": "down_in",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("--top", type=int, default=8)
    args = parser.parse_args()
    with open(args.tokens, encoding="utf-8") as file:
        samples = json.load(file)

    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    scales = {}

    def hook(site):
        def look(_module, inputs):
            (x,) = inputs
            scales.setdefault(site, []).append(x[0].abs().amax(dim=-1))

        return look

    for name, module in model.named_modules():
        for suffix, port in SITES.items():
            if name.endswith(suffix):
                layer = name.split("layers.")[1].split(".")[0]
                module.register_forward_pre_hook(hook(f"layers.{layer}.{port}"))

    with torch.no_grad():
        for sample in samples:
            model.model(torch.tensor([sample]))

    result = []
    for site, sequences in scales.items():
        ratios = [(s.max() / s.median()).item() for s in sequences]
        tokens = [
            {"sample": n, "position": t, "token": samples[n][t], "scale": scale}
            for n, s in enumerate(sequences)
            for t, scale in enumerate(s.tolist())
        ]
        tokens.sort(key=lambda token: -token["scale"])
        result.append(
            {
                "site": site,
                "ratio": sum(ratios) / len(ratios),
                "absmax": tokens[0]["scale"],
                "top": tokens[: args.top],
            }
        )
    result.sort(key=lambda site: -site["ratio"])
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
