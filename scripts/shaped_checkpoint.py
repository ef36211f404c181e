"""A checkpoint of SmolLM2-135M's shape with random bf16 weights, by the standard library alone.

    shaped_checkpoint.py FOLDER [--tokenizer FILE]

For machines without network on which only shapes matter: speed, and agreement of devices. 269 MB. The same command
gives the same bytes. The tokenizer is copied; any whose ids are below 49152 will do.
"""

import argparse
import array
import json
import random
import shutil
import struct
from pathlib import Path

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCABULARY = 576, 1536, 30, 9, 3, 49152
HEAD_DIM = HIDDEN // HEADS
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "bfloat16",
}
# Weights are stretches of one table of normal values: 135 million draws would take minutes.
TABLE = 1 << 20


def shapes():
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        yield f"{block}.input_layernorm.weight", (HIDDEN,)
        yield f"{block}.self_attn.q_proj.weight", (HIDDEN, HIDDEN)
        yield f"{block}.self_attn.k_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield f"{block}.self_attn.v_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield f"{block}.self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield f"{block}.post_attention_layernorm.weight", (HIDDEN,)
        yield f"{block}.mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{block}.mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{block}.mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
    yield "model.norm.weight", (HIDDEN,)


def bf16(value):
    """The upper half of an f32."""
    return struct.unpack("<H", struct.pack("<f", value)[2:])[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path("models/assets/tiny-llama/tokenizer.json"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(args.tokenizer, args.folder / "tokenizer.json")
    (args.folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")

    draw = random.Random(0)
    table = array.array("H", (bf16(draw.gauss(0, 0.04)) for _ in range(TABLE)))
    one = array.array("H", [bf16(1.0)])
    header, at = {}, 0
    for name, shape in shapes():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(args.folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, shape in shapes():
            if len(shape) == 1:
                file.write((one * shape[0]).tobytes())
                continue
            rows, width = shape
            for _ in range(rows):
                start = draw.randrange(TABLE - width)
                file.write(table[start : start + width].tobytes())
    print(args.folder)


if __name__ == "__main__":
    main()
