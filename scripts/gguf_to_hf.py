# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2", "safetensors>=0.5", "gguf>=0.17"]
# ///
"""Dequantizes a GGUF file (architecture llama or gemma3) to f16 and writes it as a Hugging Face folder.

    gguf_to_hf.py MODEL.gguf OUTDIR [--tokenizer tokenizer.json]

Writes config.json, model.safetensors, tokenizer.json (from the GGUF's own BPE vocabulary unless one is given) and
tokenizer_config.json.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

OUTSIDE_BLOCKS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
IN_A_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}


class Gguf:
    """A GGUF file: its tensors, and its metadata with the architecture's prefix implied."""

    def __init__(self, path):
        reader = GGUFReader(path)
        self.tensors = reader.tensors
        self.fields = {key: field.contents() for key, field in reader.fields.items()}
        self.arch = self.fields["general.architecture"]
        if self.arch not in NORMS:
            raise SystemExit(f"{path}: architecture {self.arch}; this converter knows {', '.join(NORMS)}")

    def get(self, key, default=None):
        return self.fields.get(f"{self.arch}.{key}", default)

    def tokenizer(self, key, default=None):
        return self.fields.get(f"tokenizer.ggml.{key}", default)


def unpermute(w, heads):
    """Undoes llama.cpp's interleaving of the two halves of each head in q and k of architecture llama."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def weights(gguf):
    names = IN_A_BLOCK | NORMS[gguf.arch]
    heads = {"attn_q": gguf.get("attention.head_count"), "attn_k": gguf.get("attention.head_count_kv")}
    out = {}
    for tensor in gguf.tensors:
        if tensor.name == "rope_freqs.weight":
            continue  # derived from the configuration
        w = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        w = w.reshape([int(n) for n in reversed(tensor.shape)])
        if tensor.name in OUTSIDE_BLOCKS:
            name = OUTSIDE_BLOCKS[tensor.name]
        elif match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", tensor.name):
            layer, part, kind = match.groups()
            if gguf.arch == "llama" and part in heads:
                w = unpermute(w, heads[part])
            name = f"model.layers.{layer}.{names[part]}.{kind}"
        else:
            raise SystemExit(f"unknown tensor {tensor.name}")
        if gguf.arch == "gemma3" and tensor.name.endswith("norm.weight"):
            w = w - 1.0  # llama.cpp stores 1 + w
        out[name] = np.ascontiguousarray(w.astype(np.float16))
    return out


def config(gguf, tensors):
    hidden, heads = gguf.get("embedding_length"), gguf.get("attention.head_count")
    head_dim = gguf.get("attention.key_length", hidden // heads)
    layers = gguf.get("block_count")
    out = {
        "architectures": [{"llama": "LlamaForCausalLM", "gemma3": "Gemma3ForCausalLM"}[gguf.arch]],
        "model_type": {"llama": "llama", "gemma3": "gemma3_text"}[gguf.arch],
        "hidden_size": hidden,
        "intermediate_size": gguf.get("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": gguf.get("context_length"),
        "rms_norm_eps": float(f"{gguf.get('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": float(gguf.get("rope.freq_base", 10000.0)),
        "vocab_size": tensors["model.embed_tokens.weight"].shape[0],
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "hidden_act": {"llama": "silu", "gemma3": "gelu_pytorch_tanh"}[gguf.arch],
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float16",
        "bos_token_id": gguf.tokenizer("bos_token_id"),
        "eos_token_id": gguf.tokenizer("eos_token_id"),
        "pad_token_id": gguf.tokenizer("padding_token_id"),
    }
    if gguf.arch == "gemma3":
        out |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": gguf.get("attention.sliding_window"),
            "sliding_window_pattern": 6,
            "layer_types": ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(layers)],
            "rope_local_base_freq": 10000.0,
            "query_pre_attn_scalar": head_dim,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
        }
    return out


def tokenizer(gguf):
    """The byte-level BPE tokenizer of SmolLM, the one vocabulary for which the GGUF says enough."""
    if gguf.tokenizer("model") != "gpt2" or gguf.tokenizer("pre") != "smollm":
        raise SystemExit("this GGUF's own tokenizer cannot be rebuilt: give --tokenizer tokenizer.json")
    tokens, types = gguf.tokenizer("tokens"), gguf.tokenizer("token_type")
    control, user_defined, unused = 3, 4, 5
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": types[i] == control}
        for i, token in enumerate(tokens)
        if types[i] in (control, user_defined)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens) if types[i] != unused},
            "merges": [merge.split(" ") for merge in gguf.tokenizer("merges")],
        },
    }


def tokenizer_config(gguf):
    out = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(gguf.tokenizer("add_bos_token", False)),
        "model_max_length": gguf.get("context_length"),
    }
    if template := gguf.tokenizer("chat_template"):
        out["chat_template"] = template
    for name, key in {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}.items():
        index = gguf.tokenizer(f"{name}_token_id")
        if index is not None:
            out[f"{key}_token"] = gguf.tokenizer("tokens")[index]
    return out


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    args = parser.parse_args()

    gguf = Gguf(args.gguf)
    tensors = weights(gguf)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    write_json(args.out / "config.json", config(gguf, tensors))
    if args.tokenizer:
        shutil.copyfile(args.tokenizer, args.out / "tokenizer.json")
    else:
        write_json(args.out / "tokenizer.json", tokenizer(gguf))
    write_json(args.out / "tokenizer_config.json", tokenizer_config(gguf))
    print(f"{gguf.arch}: {gguf.get('block_count')} blocks, {sum(w.size for w in tensors.values())} parameters")


if __name__ == "__main__":
    main()
