# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.4.6", "torch>=2.6"]
# ///
"""Golden values of the floating-point grids.

    float_golden.py > harness/tests/fixtures/floats.json

E4M3 is what `torch.float8_e4m3fn` makes of a number after a clamp to ±448 (its conversion itself gives NaN beyond 464).
E2M1 is a search through the values that the OCP Microscaling specification lists, ties to the even code. Blocks of MXFP4 and
NVFP4 are written out from the formats' definitions, in f32.
"""

import json
import sys

import numpy as np
import torch

rng = np.random.default_rng(448)
f32 = np.float32
LEVELS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def e4m3(x):
    return torch.tensor(np.clip(x, -448, 448), dtype=torch.float32).to(torch.float8_e4m3fn).float().numpy()


def e2m1(x):
    out = []
    for v in np.asarray(x, dtype=f32):
        a = min(abs(float(v)), 6.0)
        # The distance decides, then the parity of the code.
        code = min(range(8), key=lambda c: (abs(a - LEVELS[c]), c % 2))
        out.append(np.copysign(LEVELS[code], v))
    return np.array(out, dtype=f32)


def mxfp4(block):
    m = np.abs(block).max()
    scale = f32(2.0) ** (np.floor(np.log2(m)) - 2) if m > 0 else f32(2.0**-126)
    return e2m1(block / f32(scale)) * f32(scale)


def nvfp4(tensor):
    g = f32(np.abs(tensor).max() / f32(448 * 6))
    out = []
    for block in tensor.reshape(-1, 16):
        scale = f32(e4m3(np.abs(block).max() / f32(6) / g) * g)
        out.append(e2m1(block / scale) * scale)
    return np.concatenate(out)


def fp8(share):
    scale = np.abs(share).max() / f32(448)
    return e4m3(share / scale) * scale


def numbers(x):
    return [float(str(v)) for v in np.asarray(x, dtype=f32).ravel()]


def main():
    sweep = np.concatenate(
        [
            [0.0, 448.0, 449.0, 463.9, 464.0, 465.0, 1e6, 2.0**-9, 2.0**-10, 1.5 * 2.0**-10, 2.0**-6, 0.0146],
            2.0 ** rng.uniform(-12, 10, 300),
            # Halfway between neighbours.
            [(a + b) / 2 for a, b in zip(np.arange(8, 16) / 8, np.arange(9, 17) / 8)],
        ]
    ).astype(f32)
    sweep = np.concatenate([sweep, -sweep])
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.5, 6.0, 7.0, 100.0, 0.24, 0.26, 1.7, 4.9, 5.1], dtype=f32)
    ties = np.concatenate([ties, -ties, rng.uniform(-8, 8, 200).astype(f32)])
    heavy = rng.standard_t(3, size=256).astype(f32)
    heavy[32:64] *= f32(1e-3)
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().tolist()
    golden = {
        "versions": {"numpy": np.__version__, "torch": torch.__version__},
        "every_e4m3": numbers(sorted(v for v in every if v == v)),
        "e4m3": {"x": numbers(sweep), "rounded": numbers(e4m3(sweep))},
        "e2m1": {"x": numbers(ties), "rounded": numbers(e2m1(ties))},
        "blocks": {
            "x": numbers(heavy),
            "mxfp4": numbers(np.concatenate([mxfp4(b) for b in heavy.reshape(-1, 32)])),
            "nvfp4": numbers(nvfp4(heavy)),
            "fp8-e4m3": numbers(np.concatenate([fp8(b) for b in heavy.reshape(-1, 32)])),
        },
    }
    lines = [f'"{key}": {json.dumps(value, separators=(",", ":"))}' for key, value in golden.items()]
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")


main()
