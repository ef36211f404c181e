# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.4.6"]
# ///
"""Golden weights of GPTQ and GPTAQ, written from the papers' formulas in numpy.

    gptq_golden.py > harness/tests/fixtures/gptq.json

One column after another, without blocks and without the factor's shortcuts: H is inverted as a matrix, the inverse is
factored, and every column updates all that follow. Sums are f64; scales and codes are f32, as the harness rounds them.
"""

import json
import sys

import numpy as np

rng = np.random.default_rng(20240817)
ROWS, CHANNELS, TOKENS = 12, 40, 96
f32 = np.float32


def fit(lo, hi, bits, convention):
    """Scale and zero point of one share of the weights, f32."""
    q, n = f32(2 ** (bits - 1) - 1), f32(2**bits - 1)
    m = max(abs(lo), abs(hi))
    if convention == "absmax":
        return (m / q if m > 0 else f32(1)), f32(0), -q, q
    if convention == "full-range":
        return (f32(2) * m / n if m > 0 else f32(1)), f32(0), -q - f32(1), q
    if convention == "atom":
        return max(m, f32(1e-5)) / q, f32(0), -q - f32(1), q
    assert convention == "zero-in-range"
    lo, hi = min(lo, f32(0)), max(hi, f32(0))
    if lo == 0 and hi == 0:
        lo, hi = f32(-1), f32(1)
    delta = (hi - lo) / n
    return delta, np.round(-lo / delta), f32(0), n


def rounded(w, scale):
    delta, zero, low, high = scale
    code = np.clip(np.round(w.astype(f32) / delta) + zero, low, high)
    return ((code - zero) * delta).astype(f32)


def choose(w, h, case):
    """The scale of one row's share `w` (f32)."""
    bits, convention, clip = case["bits"], case["convention"], case["clip"]
    lo, hi = w.min(), w.max()
    if isinstance(clip, float):
        return fit(lo * f32(clip), hi * f32(clip), bits, convention)
    best = None
    for i in range(80 if clip == "mse" else 10):
        if clip == "mse":
            p = f32(1) - f32(i) / f32(100)
            scale = fit(lo * p, hi * p, bits, convention)
            loss = np.sum(np.abs((rounded(w, scale) - w).astype(np.float64)) ** 2.4)
        else:
            m = max(abs(lo), abs(hi)) * (f32(1) - f32(i) / f32(20))
            scale = fit(max(lo, -m), min(hi, m), bits, convention)
            d = rounded(w, scale).astype(np.float64) - w.astype(np.float64)
            loss = d @ h @ d
        if best is None or loss < best[0]:
            best = (loss, scale)
    return best[1]


def gptq(weight, x, x_original, case):
    x = x.astype(np.float64)
    h = x.T @ x
    squares = np.diag(h).copy()
    dead = squares == 0
    mean = squares[~dead].mean()
    damped = h.copy()
    damped[dead, dead] = mean
    damped += case["damping_used"] * mean * np.eye(CHANNELS)
    order = np.argsort(-squares, kind="stable") if case["act_order"] else np.arange(CHANNELS)
    # Atom: ascending second moments, the last ones apart.
    if case["kept"]:
        order = np.argsort(squares, kind="stable")
    rest = CHANNELS - case["kept"]
    lower = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)]))
    u = lower.T
    p = np.zeros_like(u)
    if case["alpha"]:
        cross = (x_original.astype(np.float64) - x).T @ x
        p = case["alpha"] * np.triu(cross[np.ix_(order, order)] @ u.T, 1) @ u

    alive = weight.copy()
    alive[:, dead] = 0
    group = case["group"] or CHANNELS
    source = alive if case["group"] else weight
    fixed = None
    if not (case["group"] and case["groups"] == "dynamic"):
        fixed = {}
        for start in range(0, CHANNELS, group):
            of = np.arange(start, min(start + group, CHANNELS))
            for r in range(ROWS):
                fixed[r, start // group] = choose(source[r, of], h[np.ix_(of, of)], case)

    w = alive[:, order].astype(np.float64)
    out = np.zeros((ROWS, CHANNELS), dtype=f32)
    scales = [None] * ROWS
    for i in range(rest):
        channel = order[i]
        if fixed is None and i % group == 0:
            end = min(i + group, rest)
            of = order[i:end]
            for r in range(ROWS):
                scales[r] = choose(w[r, i:end].astype(f32), h[np.ix_(of, of)], case)
        for r in range(ROWS):
            scale = scales[r] if fixed is None else fixed[r, channel // group]
            out[r, channel] = rounded(w[r, i : i + 1], scale)[0]
        error = (w[:, i] - out[:, channel].astype(np.float64)) / u[i, i]
        now = w[:, i].copy()
        w[:, i + 1 :] -= np.outer(error, u[i, i + 1 :])
        w[:, i + 1 :] += np.outer(now, p[i, i + 1 :])
    for r in range(ROWS if case["kept"] else 0):
        last = w[r, rest:].astype(f32)
        out[r, order[rest:]] = rounded(last, fit(last.min(), last.max(), 8, "atom"))
    return out


def cases():
    base = {
        "bits": 4, "convention": "absmax", "group": 0, "groups": "dynamic", "act_order": False, "damping": 0.01,
        "damping_used": 0.01, "clip": 1.0, "dead": [], "tokens": TOKENS, "alpha": 0.0, "kept": 0,
    }
    changes = [
        {},
        {"bits": 3, "convention": "zero-in-range"},
        {"convention": "full-range", "damping": 0.1, "damping_used": 0.1},
        {"bits": 2, "convention": "zero-in-range", "act_order": True},
        {"bits": 3, "group": 8},
        {"bits": 3, "group": 8, "groups": "static"},
        {"bits": 3, "group": 8, "act_order": True},
        {"bits": 3, "group": 8, "groups": "static", "act_order": True, "convention": "zero-in-range"},
        {"bits": 4, "group": 16, "convention": "full-range"},
        {"bits": 3, "group": 16, "groups": "static", "act_order": True},
        {"clip": 0.85},
        {"bits": 3, "clip": "mse", "convention": "zero-in-range"},
        {"bits": 3, "clip": "mse", "group": 8},
        {"bits": 3, "clip": "output"},
        {"bits": 3, "clip": "output", "group": 8, "act_order": True, "convention": "zero-in-range"},
        {"bits": 3, "clip": "output", "group": 8, "groups": "static", "act_order": True},
        {"dead": [3, 17, 39]},
        {"dead": [3, 17, 39], "group": 8, "bits": 3, "act_order": True, "convention": "zero-in-range"},
        {"tokens": 20},
        # Twenty tokens cannot make forty channels positive definite: the first rung of the ladder does.
        {"tokens": 20, "damping": 0.0},
        {"alpha": 1.0},
        {"alpha": 0.25, "bits": 3, "group": 8, "act_order": True},
        {"kept": 4, "group": 12, "convention": "full-range", "clip": 0.85},
        {"kept": 5, "group": 16, "bits": 3, "convention": "zero-in-range", "dead": [3, 17]},
    ]
    return [base | change for change in changes]


def short(x):
    return np.round(x, 3).astype(f32)


def numbers(x):
    return [float(str(v)) for v in np.asarray(x, dtype=f32).ravel()]


def main():
    mixing = rng.normal(size=(CHANNELS, CHANNELS)) / 6 + np.eye(CHANNELS)
    spread = np.exp(rng.normal(size=CHANNELS))
    x = short(rng.normal(size=(TOKENS, CHANNELS)) @ mixing * spread)
    original = short(x + rng.normal(size=x.shape) * 0.1 * spread)
    weight = short(rng.normal(size=(ROWS, CHANNELS)) * 0.3)
    rows = []
    for case in cases():
        seen, meant = x[: case["tokens"]].copy(), original[: case["tokens"]].copy()
        seen[:, case["dead"]] = 0
        rows.append(case | {"rounded": numbers(gptq(weight, seen, meant, case))})
    golden = {
        "versions": {"numpy": np.__version__},
        "rows": ROWS, "channels": CHANNELS,
        "weight": numbers(weight), "inputs": numbers(x), "original_inputs": numbers(original),
    }
    lines = [f'"{key}": {json.dumps(value, separators=(",", ":"))}' for key, value in golden.items()]
    lines.append('"cases": [\n' + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]")
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")


main()
