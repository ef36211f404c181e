# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "transformers>=5.0", "safetensors>=0.5", "tokenizers>=0.21", "numpy>=2"]
# ///
"""Prefill speed on the CPU, tokens/s: PyTorch (transformers, f32, attention eager and sdpa) against Quantscope.

    compare_speed.py MODEL_DIR TEXT [--binary target/release/quantscope] [--windows 8] [--length 512]
                     [--cores N] [--repeats 5]

One run, the same cores, the contenders in turn in every round, medians over rounds with their range, so that a load
which comes and goes hits all alike. Every contender sees windows of the same length of the same text, one window at a
time in PyTorch; the time is that of forward passes with all logits, without loading and tokenizing. Quantscope's are
`execution.forward_seconds` and `execution.tokens` of its measurement files. `w8a8-token` simulates the grid in floating
point or multiplies integers, whichever the program does; it is compared with PyTorch's unquantized model.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

EXPERIMENT = """\
question  = "How fast is prefill?"
reference = "own"

[sweep]
models  = ["model"]
recipes = ["w8a8-token"]
seeds   = [0]

[model.model]
path = {model}

[recipe.w8a8-token]
steps = [
  {{ step = "weights",     bits = 8, granularity = "channel" }},
  {{ step = "activations", bits = 8, granularity = "token" }},
]

[[evaluate]]
metric   = "perplexity"
protocol = "gptq"
corpus   = {{ path = {text} }}
length   = {length}
bos      = "tokenizer"
limit    = {windows}
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--binary", type=Path, default=Path("target/release/quantscope"))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def torch_contender(args, attention):
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.cores)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation=attention).eval()
    ids = Tokenizer.from_file(str(args.model / "tokenizer.json")).encode(args.text.read_text(encoding="utf-8")).ids
    if len(ids) < args.windows * args.length:
        raise SystemExit(f"{args.text} has {len(ids)} tokens: too few for {args.windows} windows of {args.length}")
    windows = torch.tensor(ids[: args.windows * args.length]).view(args.windows, 1, args.length)

    @torch.inference_mode()
    def run():
        started = time.perf_counter()
        for window in windows:
            model(window, use_cache=False)
        return windows.numel() / (time.perf_counter() - started)

    run()  # the first pass allocates
    return run


def quantscope_round(args, folder):
    """Tokens per second by reading, from one process on an empty store."""
    experiment = folder / "speed.toml"
    quoted = {"model": json.dumps(str(args.model.resolve())), "text": json.dumps(str(args.text.resolve()))}
    experiment.write_text(EXPERIMENT.format(**quoted, length=args.length, windows=args.windows), encoding="utf-8")
    results = Path(tempfile.mkdtemp(dir=folder))
    command = [args.binary.resolve(), "sweep", experiment, "--device", "cpu", "--results", results]
    environment = os.environ | {"RAYON_NUM_THREADS": str(args.cores)}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed with {done.returncode}:\n{done.stderr}")
    speeds = {}
    for path in sorted(results.glob("cells/*/measurements/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        execution = record["execution"]
        if execution["forward_seconds"] > 0:
            reading = "original" if record["result"]["reading"] == "original" else "w8a8-token"
            speeds[f"quantscope {reading}"] = execution["tokens"] / execution["forward_seconds"]
    if len(speeds) != 2:
        raise SystemExit(f"expected timed measurements of two readings in {results}, found {sorted(speeds)}")
    return speeds


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    args = arguments()
    cores = sorted(os.sched_getaffinity(0))[: args.cores]
    os.sched_setaffinity(0, cores)
    load_before = os.getloadavg()
    speeds = {}
    contenders = {f"torch {attention}": torch_contender(args, attention) for attention in ("eager", "sdpa")}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeats):
            for name, run in contenders.items():
                speeds.setdefault(name, []).append(run())
            for name, speed in quantscope_round(args, Path(folder)).items():
                speeds.setdefault(name, []).append(speed)

    import torch
    import transformers

    print(f"{processor()}, cores {cores}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"load average before {load_before[0]:.2f}, after {os.getloadavg()[0]:.2f} (this run included)")
    print(f"{args.model.name}, f32, {args.windows} windows of {args.length} tokens, median (range) of {args.repeats}\n")
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print("| contender | tokens/s | range | / torch eager | / torch sdpa |")
    print("|---|--:|--:|--:|--:|")
    for name, values in speeds.items():
        ratios = " | ".join(f"{medians[name] / medians[f'torch {a}']:.2f}" for a in ("eager", "sdpa"))
        print(f"| {name} | {medians[name]:.0f} | {min(values):.0f}–{max(values):.0f} | {ratios} |")


if __name__ == "__main__":
    main()
