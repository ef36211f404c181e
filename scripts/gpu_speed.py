"""What a measured `speed` says of a card: a page's section, in Markdown, on standard output.

    gpu_speed.py STORE MODEL_DIR cuda|vulkan|vulkan-software

STORE holds `weight-bytes/speed/…` of MODEL_DIR's original and of one recipe, measured on the card. Beside the tokens per
second stand what share of the card's dense bf16 and int8 peaks the linear layers' products are, and PyTorch on the same
card, where torch and transformers are installed: the same shape and tokens, eager, f32 and bf16, medians of five.
"""

import json
import statistics
import sys
import time
from pathlib import Path

# Dense TFLOP/s in bf16 and TOP/s in int8, as NVIDIA's data sheets have them (half of what they say with sparsity).
PEAKS = {
    "H200": (989, 1979),
    "H100 PCIe": (756, 1513),
    "H100": (989, 1979),
    "A100": (312, 624),
    "L40S": (362, 733),
    "L4": (121, 242),
    "A10G": (70, 140),
    "T4": (None, 130),
}


def peaks(device):
    return next((peak for name, peak in PEAKS.items() if name in device), (None, None))


def linear_weights(model):
    """Weights of the blocks' linear layers, from the checkpoint's header."""
    with open(model / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    blocks = [entry["shape"] for name, entry in header.items() if ".layers." in name]
    return sum(shape[0] * shape[1] for shape in blocks if len(shape) == 2)


def measured(store):
    for path in sorted(Path(store).glob("cells/*/measurements/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["execution"].get("speed"):
            yield record


def torch_prefill(model, tokens, kind):
    """Tokens per second by type, or why not."""
    if kind != "cuda":
        return None, "PyTorch is compared on CUDA alone."
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        return None, f"PyTorch was not compared: {error}."
    if not torch.cuda.is_available():
        return None, f"PyTorch {torch.__version__} was not compared: it sees no CUDA device."
    speeds = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="eager").eval().to("cuda")
        ids = torch.arange(tokens, device="cuda").remainder(49152).view(1, tokens)
        seconds = []
        with torch.inference_mode():
            for round in range(6):
                torch.cuda.synchronize()
                began = time.perf_counter()
                loaded(ids, use_cache=False, logits_to_keep=1)
                torch.cuda.synchronize()
                if round:
                    seconds.append(time.perf_counter() - began)
        speeds[f"PyTorch {torch.__version__}, eager, {name}"] = [tokens / second for second in sorted(seconds)]
    return speeds, ""


def share(rate, peak):
    return "–" if peak is None else f"{100 * rate / peak:.2f} %"


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    store, model, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    records = list(measured(store))
    if not records:
        sys.exit(f"gpu_speed: no measurement of speed in {store}")
    device = records[0]["execution"]["device"]
    operations = 2 * linear_weights(model)
    bf16, int8 = peaks(device)
    tokens = records[0]["result"]["detail"]["prefill"]
    print("## Speed\n")
    known = f"{bf16 or '?'} TFLOP/s in bf16 and {int8} TOP/s in int8, dense" if int8 else "unknown to this script"
    print(f"A model of SmolLM2-135M's shape, random weights, {tokens} tokens in one pass. The card's peaks: {known}.\n")
    print("| contender | tokens/s (range) | TFLOP/s in linear layers' products | of bf16 | of int8 | ms a token decoded | executed |")
    print("|---|--:|--:|--:|--:|--:|---|")
    for record in records:
        execution = record["execution"]
        speed = execution["speed"]
        prefill, decode = speed["prefill_tokens_per_second"], speed["decode_seconds_per_token"]
        rate = prefill["median"] * operations / 1e12
        executed = execution.get("executed") or {}
        reading = "original" if record["result"]["reading"] == "original" else "W8A8 per token"
        how = executed.get("kernel") or "; ".join(executed.get("floating_groups", {})) or "f32"
        print(
            f"| this program, {reading} | {prefill['median']:.0f} ({prefill['least']:.0f}–{prefill['most']:.0f}) "
            f"| {rate:.2f} | {share(rate, bf16)} | {share(rate, int8)} | {1e3 * decode['median']:.1f} | {how} |"
        )
    speeds, why = torch_prefill(model, tokens, kind)
    for name, values in (speeds or {}).items():
        rate = statistics.median(values) * operations / 1e12
        print(
            f"| {name} | {statistics.median(values):.0f} ({values[0]:.0f}–{values[-1]:.0f}) | {rate:.2f} "
            f"| {share(rate, bf16)} | {share(rate, int8)} | – | |"
        )
    if why:
        print(f"\n{why}")


if __name__ == "__main__":
    main()
