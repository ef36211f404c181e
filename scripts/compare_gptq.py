# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "transformers>=5.0", "safetensors>=0.5", "tokenizers>=0.21", "numpy>=2"]
# ///
"""GPTQ of a whole Llama on the CPU, seconds and peak memory: PyTorch against Quantscope, one run, the same cores.

    compare_gptq.py MODEL_DIR TEXT HELD_OUT [--binary target/release/quantscope] [--samples 128] [--length 512]
                    [--bits 4] [--group 64] [--cores N]

Both round every linear of every block with GPTQ: asymmetric grid, groups whose scales are chosen when their turn comes,
damping 1 %, natural order, blocks one after another, the inputs of a block being what the rounded blocks before it make
(`solver = "gptq"` with its defaults). The PyTorch side is written here from the published algorithm: forward hooks sum
XᵀX in f32, once for linears that read one activation, as here; the inverse is factored in f32; columns are rounded in
blocks of as many as a group has. The time is that of loading the model and rounding it; processors' seconds are those of
the whole process (imports there, an evaluation here), which other load on the machine moves less. Perplexity of both on
the first four windows of HELD_OUT shows that they did the same.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXPERIMENT = """\
question  = "How long does GPTQ take?"
reference = "own"

[sweep]
models       = ["model"]
recipes      = ["gptq"]
calibrations = ["set"]

[model.model]
path = {model}

[calibration.set]
corpus  = {{ path = {text} }}
samples = {samples}
length  = {length}
bos     = "none"

[recipe.gptq]
steps = [{{ step = "weights", bits = {bits}, granularity = "group({group})", symmetric = false, solver = "gptq" }}]

[[evaluate]]
metric   = "perplexity"
protocol = "gptq"
corpus   = {{ path = {held_out} }}
length   = {length}
bos      = "none"
limit    = 4
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--binary", type=Path, default=Path("target/release/quantscope"))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--contender", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def find_scale(w, bits):
    """Scale and zero point of every row, zero in the range."""
    import torch

    low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
    empty = (low == 0) & (high == 0)
    low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
    scale = (high - low) / (2**bits - 1)
    return scale, torch.round(-low / scale)


def inverse_factor(h):
    """The upper factor of the damped inverse, and which channels are dead."""
    import torch

    dead = h.diagonal() == 0
    h[dead, dead] = 1
    h.diagonal().add_(0.01 * h.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True), dead


def gptq(weight, u, dead, bits, group):
    """The rounded weight, by the published algorithm."""
    import torch

    w, side = weight.clone(), weight.shape[1]
    w[:, dead] = 0
    for start in range(0, side, group):
        end = min(start + group, side)
        block, errors = w[:, start:end], torch.empty_like(w[:, start:end])
        scale, zero = find_scale(block, bits)
        corner = u[start:end, start:end]
        for i in range(end - start):
            column = block[:, i : i + 1]
            q = ((torch.round(column / scale) + zero).clamp(0, 2**bits - 1) - zero) * scale
            error = (column - q) / corner[i, i]
            block[:, i:] -= error @ corner[i : i + 1, i:]
            block[:, i : i + 1] = q
            errors[:, i : i + 1] = error
        w[:, end:] -= errors @ u[start:end, end:]
    return w


def torch_side(args):
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.cores)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))

    def windows(path, count):
        ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False).ids
        return torch.tensor(ids[: count * args.length]).view(count, args.length)

    samples, held_out = windows(args.text, args.samples), windows(args.held_out, 4)
    started = time.perf_counter()
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(
            args.model, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        streams, kept = [], {}

        class Caught(Exception):
            pass

        def catch(_, given, named):
            streams.append(given[0] if given else named["hidden_states"])
            kept.update({key: value for key, value in named.items() if key != "hidden_states"})
            raise Caught

        handle = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
        for batch in samples.split(2):
            try:
                model(batch, use_cache=False)
            except Caught:
                pass
        handle.remove()
        for layer in model.model.layers:
            linears = {name: m for name, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
            # q, k and v read one activation, gate and up another: one sum for each.
            owners = [n for n in linears if n.split(".")[-1] in ("q_proj", "o_proj", "gate_proj", "down_proj")]
            sums = {name: torch.zeros(linears[name].in_features, linears[name].in_features) for name in owners}

            def hook(name):
                def add(_, given, __):
                    x = given[0].reshape(-1, given[0].shape[-1])
                    sums[name].addmm_(x.T, x)

                return add

            handles = [linears[name].register_forward_hook(hook(name)) for name in owners]
            for stream in streams:
                layer(stream, **kept)
            for handle in handles:
                handle.remove()
            factors = {name: inverse_factor(h) for name, h in sums.items()}
            for name, linear in linears.items():
                part = name.split(".")[-1].replace("k_proj", "q_proj").replace("v_proj", "q_proj")
                owner = next(n for n in owners if n.endswith(part.replace("up_proj", "gate_proj")))
                linear.weight.data = gptq(linear.weight.data, *factors[owner], args.bits, args.group)
            if layer is not model.model.layers[-1]:
                for i, stream in enumerate(streams):
                    out = layer(stream, **kept)
                    streams[i] = out[0] if isinstance(out, tuple) else out
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_SELF)
        peak, processor = used.ru_maxrss * 1024, used.ru_utime + used.ru_stime
        losses = [model(w[None], labels=w[None], use_cache=False).loss.item() for w in held_out]
    perplexity = math.exp(sum(losses) / 4)
    print(json.dumps({"seconds": seconds, "processor": processor, "peak": peak, "perplexity": perplexity}))


def quantscope_side(args, folder):
    experiment, results = folder / "gptq.toml", folder / "results"
    quoted = {key: json.dumps(str(getattr(args, key).resolve())) for key in ("model", "text", "held_out")}
    sizes = {key: getattr(args, key) for key in ("samples", "length", "bits", "group")}
    experiment.write_text(EXPERIMENT.format(**quoted, **sizes), encoding="utf-8")
    command = [args.binary.resolve(), "sweep", experiment, "--device", "cpu", "--results", results, "-R", "original"]
    environment = os.environ | {"RAYON_NUM_THREADS": str(args.cores)}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed with {done.returncode}:\n{done.stderr}")
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in results.rglob("cell.json")]
    [cell] = [cell for cell in cells if cell["result"]["steps"]]
    [record] = results.rglob(f"{cell['result']['id']}/measurements/*.json")
    value = json.loads(record.read_text(encoding="utf-8"))["result"]["value"]
    execution = cell["execution"]
    processor = used.ru_utime + used.ru_stime
    seconds, peak = execution["seconds"], execution["peak_memory"]
    return {"seconds": seconds, "processor": processor, "peak": peak, "perplexity": value}


def main():
    args = arguments()
    if args.contender:
        torch_side(args)
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--contender"]
    with tempfile.TemporaryDirectory() as folder:
        before = os.getloadavg()[0]
        ours = quantscope_side(args, Path(folder))
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        theirs = json.loads(done.stdout.splitlines()[-1])
    print(f"{args.samples} x {args.length} tokens, {args.bits} bits, groups of {args.group}, {args.cores} cores; "
          f"load before {before:.1f}, after {os.getloadavg()[0]:.1f}")
    for name, side in (("PyTorch", theirs), ("Quantscope", ours)):
        print(f"{name:<12} {side['seconds']:8.1f} s  {side['processor']:8.1f} s of processors  "
              f"{side['peak'] / 2**20:6.0f} MiB  perplexity {side['perplexity']:.3f}")
    print(f"Quantscope / PyTorch: {ours['seconds'] / theirs['seconds']:.2f} of the time")


main()
