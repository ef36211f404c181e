# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "transformers==5.23.0", "safetensors>=0.5", "numpy>=2"]
# ///
"""Tiny random decoders and what `transformers` computes with them: the oracle of the `models` crate.

    dump_decoder.py [OUTDIR]        (default: models/tests/oracle)

For each model of MODELS, OUTDIR/<name>/ gets config.json in the hub's layout, model.safetensors (f32), and
oracle.safetensors, all from one eager float32 pass over two sequences of T tokens:

    tokens [2, T] int32                     logits [2, T, vocabulary]
    embeddings, final_norm [2, T, hidden]   final_norm: after the last norm, the input of the head
    layers.0.attn_in, .mlp_in [2, T, hidden]    outputs of the two norms
    layers.0.q_rope [2, heads, T, head_dim], layers.0.k_rope [2, kv heads, T, head_dim]    after RoPE
    layers.0.o_in [2, T, heads * head_dim], layers.0.down_in [2, T, intermediate]
    layers.0.output [2, T, hidden]          the residual stream after the block

A model without a part has no tensor of it: no RoPE in OPT, one norm in a block of Command-R, an input of down for every
expert of Mixtral.

Variants of llama2 for the loader: `llama2-sharded` (the same weights in two files with an index; llama2's oracle
holds), `llama2-f16` and `llama2-bf16` (rounded weights, their oracle has tokens and logits only, computed in f32 from
the rounded weights). `llama3/config.rope_parameters.json` says what llama3/config.json says in transformers 5's keys.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
}
COMMON = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "torch_dtype": "float32",
    "use_cache": True,
}
# Keys as the hub's checkpoints have them: llama2 leaves out what its checkpoints leave out.
MODELS = {
    "llama2": {
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    },
    "llama3": {
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,  # with 16, frequencies fall in all three bands of the scaling
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "smollm2": {
        "hidden_size": 36,
        "intermediate_size": 64,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "llama-bias": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
    },
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
# Windows are shorter than the sequences, caps lower than the values, and what a family can choose differs from its
# default, so that a field that is not read moves the logits.
FAMILIES = {
    "gemma": SMALL
    | {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "num_key_value_heads": 1,
        "head_dim": 16,
        "hidden_act": "gelu",
        "hidden_activation": None,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
    },
    "gemma2": SMALL
    | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "head_dim": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": SMALL
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_key_value_heads": 1,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-06,
        "rope_theta": 5000.0,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "attention_bias": False,
        "query_pre_attn_scalar": 20,
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "qwen2": SMALL
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
    "qwen3": SMALL
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 12,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 2,
    },
    "mistral": SMALL
    | {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 8,
        "tie_word_embeddings": False,
    },
    "opt": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_attention_heads": 4,
        "max_position_embeddings": 48,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "word_embed_proj_dim": 32,
        "pad_token_id": 1,
    },
    "cohere": SMALL
    | {
        "architectures": ["CohereForCausalLM"],
        "model_type": "cohere",
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "layer_norm_eps": 1e-05,
        "logit_scale": 0.5,
        "rope_theta": 8000.0,
        "use_qk_norm": False,
    },
    "cohere-plus": SMALL
    | {
        "architectures": ["CohereForCausalLM"],
        "model_type": "cohere",
        "hidden_act": "silu",
        "layer_norm_eps": 1e-05,
        "logit_scale": 0.8333333333333334,
        "rope_theta": 75000.0,
        "tie_word_embeddings": True,
        "use_qk_norm": True,
    },
    "mixtral": SMALL
    | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "intermediate_size": 24,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    },
}
LENGTH = {"llama3": 160} | {name: 40 for name in FAMILIES}  # beyond original_max_position_embeddings, and windows
DEFAULT_LENGTH = 24


def build(keys, seed):
    """A model whose random weights are large enough that a mistake anywhere moves the logits."""
    generator = torch.Generator().manual_seed(seed)
    own = copy.deepcopy(keys)  # a configuration writes into nested dictionaries
    config = AutoConfig.for_model(own.pop("model_type"), **own)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    assert type(model).__name__ == keys["architectures"][0]
    # Gemma's norms multiply by 1 + w.
    middle = 0.0 if keys["model_type"].startswith("gemma") else 1.0
    with torch.no_grad():
        for name, w in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                w.uniform_(middle - 0.5, middle + 0.5, generator=generator)
            else:
                w.normal_(0.0, 0.25, generator=generator)
    return model


def forward(model, tokens):
    """One pass, with what the sites of block 0 saw."""
    seen = {}

    def keep(name, get):
        return lambda _module, inputs, output: seen.__setitem__(name, get(inputs, output).clone())

    def of_input(inputs, _output):
        return inputs[0]

    def of_output(_inputs, output):
        return output

    def first(module, *names):
        return next((part for name in names if (part := getattr(module, name, None)) is not None), None)

    decoder = getattr(model.model, "decoder", model.model)
    block = decoder.layers[0]
    # In the order in which they are looked for: some names mean another norm where an earlier one is there too.
    mlp_norms = ["pre_feedforward_layernorm", "final_layer_norm", "post_attention_layernorm"]
    hooks = [
        (decoder.embed_tokens, "embeddings", of_output),
        (first(block, "input_layernorm", "self_attn_layer_norm"), "layers.0.attn_in", of_output),
        (first(block.self_attn, "o_proj", "out_proj"), "layers.0.o_in", of_input),
        (first(block, *mlp_norms), "layers.0.mlp_in", of_output),
        (first(getattr(block, "mlp", block), "down_proj", "fc2"), "layers.0.down_in", of_input),
        (block, "layers.0.output", of_output),
        (first(decoder, "norm", "final_layer_norm"), "final_norm", of_output),
    ]
    handles = [module.register_forward_hook(keep(name, get)) for module, name, get in hooks if module is not None]
    modeling = sys.modules[type(model).__module__]
    rotate = getattr(modeling, "apply_rotary_pos_emb", None)

    def rotate_and_keep(*args, **kwargs):
        q, k = rotate(*args, **kwargs)
        seen.setdefault("layers.0.q_rope", q.clone())
        seen.setdefault("layers.0.k_rope", k.clone())
        return q, k

    if rotate is not None:
        modeling.apply_rotary_pos_emb = rotate_and_keep
    try:
        with torch.no_grad():
            seen["logits"] = model(tokens, use_cache=False).logits
    finally:
        if rotate is not None:
            modeling.apply_rotary_pos_emb = rotate
        for handle in handles:
            handle.remove()
    return seen


def tensors(model):
    """The weights under the hub's names, which give every expert its own matrices."""
    tied = model.config.tie_word_embeddings
    named = {name: w for name, w in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    for name in [name for name in named if ".mlp.experts." in name or ".mlp.gate." in name]:
        w = named.pop(name)
        moe = name.split(".mlp.")[0] + ".block_sparse_moe"
        if ".gate." in name:
            named[f"{moe}.gate.weight"] = w
            continue
        for index, matrix in enumerate(w):
            if name.endswith("down_proj"):
                named[f"{moe}.experts.{index}.w2.weight"] = matrix
            else:
                gate, up = matrix.chunk(2)
                named[f"{moe}.experts.{index}.w1.weight"] = gate.clone()
                named[f"{moe}.experts.{index}.w3.weight"] = up.clone()
    return named


def save(path, named):
    save_file({name: t.clone().contiguous() for name, t in named.items()}, path, metadata={"format": "pt"})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def dump_half(out, keys, model, tokens, dtype):
    out.mkdir(parents=True, exist_ok=True)
    rounded = {name: w.to(dtype) for name, w in tensors(model).items()}
    save(out / "model.safetensors", rounded)
    write_json(out / "config.json", keys | {"torch_dtype": str(dtype).removeprefix("torch.")})
    widened = build(keys, 0)
    widened.load_state_dict({name: w.float() for name, w in rounded.items()})
    logits = forward(widened, tokens)["logits"]
    save(out / "oracle.safetensors", {"tokens": tokens.to(torch.int32), "logits": logits})


def dump_sharded(out, keys, model):
    out.mkdir(parents=True, exist_ok=True)
    named = tensors(model)
    files = {name: f"model-0000{1 if 'layers.1' not in name else 2}-of-00002.safetensors" for name in named}
    for file in sorted(set(files.values())):
        save(out / file, {name: w for name, w in named.items() if files[name] == file})
    size = sum(w.numel() * w.element_size() for w in named.values())
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": files})
    write_json(out / "config.json", keys)


def main():
    here = Path(__file__).resolve()
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else here.parents[2] / "models" / "tests" / "oracle"
    models = {name: LLAMA | COMMON | own for name, own in MODELS.items()}
    models |= {name: COMMON | own for name, own in FAMILIES.items()}
    for seed, (name, keys) in enumerate(models.items(), start=1):
        model = build(keys, seed)
        generator = torch.Generator().manual_seed(100 + seed)
        length = LENGTH.get(name, DEFAULT_LENGTH)
        tokens = torch.randint(3, keys["vocab_size"], (2, length), generator=generator)
        tokens[:, 0] = keys["bos_token_id"]
        seen = forward(model, tokens)

        out = root / name
        out.mkdir(parents=True, exist_ok=True)
        save(out / "model.safetensors", tensors(model))
        save(out / "oracle.safetensors", seen | {"tokens": tokens.to(torch.int32)})
        write_json(out / "config.json", keys)
        print(f"{name}: logits std {seen['logits'].std():.2f}, {length} tokens")
        if name == "llama2":
            dump_sharded(root / "llama2-sharded", keys, model)
            dump_half(root / "llama2-f16", keys, model, tokens, torch.float16)
            dump_half(root / "llama2-bf16", keys, model, tokens, torch.bfloat16)
        if name == "llama3":
            rope = {"rope_theta": keys["rope_theta"]} | keys["rope_scaling"]
            modern = {k: v for k, v in keys.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")}
            write_json(out / "config.rope_parameters.json", modern | {"dtype": "float32", "rope_parameters": rope})


if __name__ == "__main__":
    main()
