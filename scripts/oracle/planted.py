# /// script
# requires-python = ">=3.10"
# dependencies = ["safetensors>=0.5", "numpy>=2"]
# ///
"""A small Llama with planted activation spikes, and what quantization does to it: the oracle of QFeM and QFeP.

    planted.py [OUTDIR]        (default: harness/tests/fixtures/planted)

The model: 24 tokens, 96 channels, one head of 64, 128 neurons, 2 blocks, RMSNorm without weights, its own head. Like a
trained model it spikes before a `down_proj` at BOS and at the *first* occurrence of a trigger token, and nowhere else:

* Embeddings have one length, so the first norm is one factor. Channel 0 is the flag of BOS and of triggers, 1 marks a
  trigger, 2 BOS, 3 is constant, 8 to 31 say which token it is; the rest is noise.
* Attention of block 0 looks for an earlier occurrence of the same token: the identity meets itself in the slowest
  rotary pairs (logit BETA at any distance), two fast pairs take GAMMA away from a token that meets itself, and BOS takes
  what finds nothing (SINK, between the token itself and the worst earlier match). What is found takes its flag away.
* Neuron 7 of block 0 turns the flag into silu(g) · g, about 1600, and `down` shrinks it again.

Two versions, with the trigger 5 and with 5 and 9, differ in row 9 of the embedding table. OUTDIR gets a checkpoint
folder of the first, and expected.json: that row, 64 sequences of BOS and 39 random tokens, and for each version what
follows, computed in float64 from the weights as they are stored (float32):

    ratios          by site: mean over sequences of largest / lower median of the token scales max_c |x|
    *_mse           mean squared difference of all logits from the floating-point model's; weights have a scale per row,
                    activations one per sequence (`token_mse`: per token); `qfem` leaves the site with the largest ratio
                    alone, `middle` the one in the middle; `qfep` and `both` stand behind the searched prefix and are
                    compared with the floating-point model behind it; BOS is not fed behind a prefix
    ratio_behind_*  the largest site's ratio behind the searched prefix, and behind BOS alone
    candidates, rate, prefix   of the search (arXiv:2405.14428, section "QFeP")

Rounding: scale = max|x| / 127, half to even, clamped to [-127, 127]. Embeddings, norms, attention and head stay as they
are. Numpy's generator is value-stable for what is drawn here: two runs write the same bytes.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

VOCABULARY, HIDDEN, HEAD, NEURONS, LAYERS = 24, 96, 64, 128, 2
BOS = 0
VERSIONS = {"one": [5], "two": [5, 9]}
THETA, EPSILON = 1e6, 1e-6
LENGTH_SQUARED = 12.0
BETA, GAMMA = 4000.0, 1600.0
LONGEST = 42
SPIKE = 300.0


def embeddings(triggers, random):
    table = np.zeros((VOCABULARY, HIDDEN))
    for token in range(VOCABULARY):
        row = table[token]
        row[0] = token == BOS or token in triggers
        row[1] = token in triggers
        row[2] = token == BOS
        row[3] = 1.0
        row[8 + token] = 1.0
        row[40:90] = random.normal(0, 0.3, 50)
        row[90] = np.sqrt(LENGTH_SQUARED - (row**2).sum())
    return table


def block(random):
    shapes = {
        "q": (HEAD, HIDDEN), "k": (HEAD, HIDDEN), "v": (HEAD, HIDDEN), "o": (HIDDEN, HEAD),
        "gate": (NEURONS, HIDDEN), "up": (NEURONS, HIDDEN), "down": (HIDDEN, NEURONS),
    }
    w = {name: random.normal(0, 0.02, shape) for name, shape in shapes.items()}
    for name, size in (("gate", 0.25), ("up", 0.25), ("down", 0.05)):
        w[name] = random.normal(0, size, shapes[name])
    return w


def plant(w, random):
    """Rebuilds attention and neuron 7 of the first block."""
    half = HEAD // 2
    size = np.sqrt(LENGTH_SQUARED / HIDDEN)  # root mean square of every embedding, which the norm divides by
    root8 = np.sqrt(8.0)  # twice, it undoes 1 / sqrt(HEAD)
    w["q"][:], w["k"][:] = 0.0, 0.0
    slow = [pair + side for pair in range(20, 32) for side in (0, half)]
    for token, channel in enumerate(slow):
        w["q"][channel, 8 + token] = w["k"][channel, 8 + token] = np.sqrt(BETA) * root8 * size
    away = np.sqrt(GAMMA / 2 * 8.0) * size
    for pair in (0, 2):
        w["q"][pair, 3], w["k"][pair, 3], w["k"][pair, 2] = away, -away, away
    turn = THETA ** (-2 * np.arange(half) / HEAD)
    worst = max((np.cos(turn[0] * d) + np.cos(turn[2] * d)) / 2 for d in range(1, LONGEST))
    sink = np.sqrt((BETA - GAMMA * (1 + worst) / 2) * 8.0) * size
    w["q"][19, 3] = w["k"][19, 2] = sink

    w["v"], w["o"] = random.normal(0, 0.05, (HEAD, HIDDEN)), random.normal(0, 0.02, (HIDDEN, HEAD))
    w["v"][0], w["o"][0], w["o"][:, 0] = 0.0, 0.0, 0.0
    w["v"][0, 1], w["o"][0, 0] = size, -1.0
    for name in ("gate", "up"):
        w[name][:, 0], w[name][7] = 0.0, 0.0
        w[name][7, 0] = 40 * size
    w["down"][:, 7] *= 1e-3


def model(triggers):
    """The tensors of a version, as they are stored."""
    random = np.random.default_rng(3)
    tensors = {"model.embed_tokens.weight": embeddings(triggers, random)}
    tensors["lm_head.weight"] = random.normal(0, 0.3, (VOCABULARY, HIDDEN))
    for layer in range(LAYERS):
        w = block(random)
        if layer == 0:
            plant(w, random)
        for name, value in w.items():
            part = "self_attn" if name in "qkvo" else "mlp"
            tensors[f"model.layers.{layer}.{part}.{name}_proj.weight"] = value
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = np.ones(HIDDEN)
    tensors["model.norm.weight"] = np.ones(HIDDEN)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}


def rounded(x, axis):
    scale = np.maximum(np.abs(x).max(axis, keepdims=True), 1e-12) / 127
    return np.clip(np.rint(x / scale), -127, 127) * scale


class Pass:
    """The forward pass. `weights`: rounded or not; `activations`: None, "tensor" or "token"; `kept`: sites left alone."""

    def __init__(self, tensors, weights=False, activations=None, kept=()):
        exact = {name: value.astype(np.float64) for name, value in tensors.items()}
        linear = [name for name in exact if "_proj" in name]
        self.w = exact | ({name: rounded(exact[name], -1) for name in linear} if weights else {})
        self.axis = {None: None, "tensor": (0, 1), "token": -1}[activations]
        self.kept = kept
        self.scales = {}  # by site, a list of the token scales of each sequence

    def linears(self, x, layer, site, names):
        site = f"layers.{layer}.{site}"
        self.scales.setdefault(site, []).append(np.abs(x).max(-1))
        if self.axis is not None and site not in self.kept:
            x = rounded(x, self.axis)
        return [x @ self.w[f"model.layers.{layer}.{name}_proj.weight"].T for name in names]

    def run(self, tokens, past=None):
        """Logits of one sequence behind keys and values by layer; and those of both."""
        before = 0 if past is None else len(past[0][0])
        positions = np.arange(before, before + len(tokens))
        angles = positions[:, None] * THETA ** (-2 * np.arange(HEAD // 2) / HEAD)

        def rotate(x):
            a, b = np.split(x, 2, axis=1)
            return np.hstack([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)])

        def norm(x):
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)

        x, cache = self.w["model.embed_tokens.weight"][tokens], []
        for layer in range(LAYERS):
            names = ["self_attn.q", "self_attn.k", "self_attn.v"]
            q, k, v = self.linears(norm(x), layer, "attn_in", names)
            q, k = rotate(q), rotate(k)
            if past is not None:
                k, v = np.vstack([past[layer][0], k]), np.vstack([past[layer][1], v])
            cache.append((k, v))
            scores = q @ k.T / np.sqrt(HEAD)
            scores[np.arange(len(k))[None] > positions[:, None]] = -np.inf
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            x = x + self.linears(scores @ v, layer, "o_in", ["self_attn.o"])[0]
            gate, up = self.linears(norm(x), layer, "mlp_in", ["mlp.gate", "mlp.up"])
            gated = gate / (1 + np.exp(-gate)) * up
            x = x + self.linears(gated, layer, "down_in", ["mlp.down"])[0]
        return norm(x) @ self.w["lm_head.weight"].T, cache


def ratios(tensors, sequences, past=None):
    seen = Pass(tensors)
    for tokens in sequences:
        seen.run(tokens, past)
    lower_median = lambda scales: np.sort(scales)[(len(scales) - 1) // 2]
    of = lambda runs: float(np.mean([scales.max() / lower_median(scales) for scales in runs]))
    return {site: of(runs) for site, runs in seen.scales.items()}, seen.scales


def search(tensors, sequences, site, scales):
    largest = {}
    for tokens, own in zip(sequences, scales):
        for i in np.argsort(-own)[:3]:
            if tokens[i] != BOS:
                largest[int(tokens[i])] = max(largest.get(int(tokens[i]), 0.0), own[i])
    candidates = sorted(largest, key=lambda token: -largest[token])[:3]
    found, counts = np.unique(np.array(sequences)[:, 1:], return_counts=True)
    best = (0.0, None)
    for candidate in candidates:
        for context in found[np.argsort(-counts, kind="stable")][:200]:
            test = Pass(tensors)
            test.run(np.array([BOS, context, candidate, context, candidate]))
            own = test.scales[site][0]
            if own[2] / own[4] > best[0]:
                best = (own[2] / own[4], [BOS, int(context), candidate])
    return candidates, float(best[0]), best[1]


def measure(triggers, sequences):
    tensors = model(triggers)
    ratio, scales = ratios(tensors, sequences)
    order = sorted(ratio, key=lambda site: -ratio[site])
    top, middle = order[0], order[len(order) // 2]
    for tokens, own in zip(sequences, scales[top]):
        first = {int(token): i for i, token in reversed(list(enumerate(tokens)))}
        spiking = [first.get(token) == i for i, token in enumerate(tokens)]
        spiking = [s and (t == BOS or t in triggers) for s, t in zip(spiking, tokens)]
        assert [s > SPIKE for s in own] == spiking, "a spike elsewhere than at a first occurrence"

    def loss(sequences, past=None, **recipe):
        exact, quantized = Pass(tensors), Pass(tensors, weights=True, **recipe)
        runs = ((quantized.run(s, past)[0] - exact.run(s, past)[0]) ** 2 for s in sequences)
        return float(np.mean([difference.mean() for difference in runs]))

    candidates, rate, prefix = search(tensors, sequences, top, scales[top])
    past = Pass(tensors).run(np.array(prefix))[1]
    bos = Pass(tensors).run(np.array([BOS]))[1]
    behind = [tokens[1:] for tokens in sequences]
    return {
        "triggers": triggers,
        "ratios": ratio,
        "top": top,
        "middle": middle,
        "naive_mse": loss(sequences, activations="tensor"),
        "qfem_mse": loss(sequences, activations="tensor", kept={top}),
        "middle_mse": loss(sequences, activations="tensor", kept={middle}),
        "w8a16_mse": loss(sequences),
        "token_mse": loss(sequences, activations="token"),
        "candidates": candidates,
        "rate": rate,
        "prefix": prefix,
        "ratio_behind_prefix": ratios(tensors, behind, past)[0][top],
        "ratio_behind_bos": ratios(tensors, behind, bos)[0][top],
        "qfep_mse": loss(behind, past, activations="tensor"),
        "both_mse": loss(behind, past, activations="tensor", kept={top}),
    }


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "bos_token_id": BOS,
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": NEURONS, "num_hidden_layers": LAYERS,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HEAD, "max_position_embeddings": 64,
    "rms_norm_eps": EPSILON, "rope_theta": THETA, "tie_word_embeddings": False,
}


def tokenizer():
    words = {"<s>": BOS} | {f"t{token}": token for token in range(1, VOCABULARY)}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<s>"},
    }


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "harness/tests/fixtures/planted")
    out.mkdir(parents=True, exist_ok=True)
    one, two = (model(triggers) for triggers in VERSIONS.values())
    for name in one:
        different = np.flatnonzero((one[name] != two[name]).reshape(len(one[name]), -1).any(-1))
        assert list(different) == ([9] if "embed" in name else []), f"{name} differs in {different}"
    random = np.random.default_rng(11)
    sequences = [np.concatenate([[BOS], random.integers(1, VOCABULARY, 39)]) for _ in range(64)]
    expected = {
        "row 9": [float(x) for x in two["model.embed_tokens.weight"][9]],
        "sequences": [[int(token) for token in tokens] for tokens in sequences],
    }
    for name, triggers in VERSIONS.items():
        expected[name] = measure(triggers, sequences)
        print(name, json.dumps(expected[name], indent=1))
    save_file(one, out / "model.safetensors")
    for name, value in (("config.json", CONFIG), ("tokenizer.json", tokenizer())):
        (out / name).write_text(json.dumps(value, indent=2) + "\n")
    (out / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
