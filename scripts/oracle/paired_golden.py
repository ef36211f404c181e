# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.4.6", "scipy==1.17.1", "statsmodels==0.15.0"]
# ///
"""Golden numbers of paired statistics, by scipy and statsmodels.

    paired_golden.py > harness/tests/fixtures/paired.json

Inputs are drawn with numpy under a fixed seed and written beside what the libraries say of them, so the test needs no
Python. The same versions give the same bytes. Where no library has a function (Newcombe's interval of paired
proportions, the power of the exact McNemar test by enumeration), it is written out here from its definition.
"""

import json
import sys

import numpy as np
import scipy
import statsmodels
import statsmodels.api as sm
from scipy import special, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint

rng = np.random.default_rng(20240709)


def plain(x):
    """numpy to what JSON has."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple, np.ndarray)):
        return [plain(value) for value in x]
    return x.item() if isinstance(x, np.generic) else x


def normal():
    x = [-30.0, -8.5, -5.0, -2.5, -2.0, -1.999, -1.0, -0.3, 0.0, 1e-9, 0.5, 1.0, 1.96, 2.0, 3.0, 6.0]
    p = [1e-300, 1e-20, 1e-6, 0.001, 0.025, 0.2, 0.4999, 0.5, 0.6, 0.8, 0.95, 0.975, 0.9995]
    return {"x": x, "cdf": stats.norm.cdf(x), "p": p, "quantile": stats.norm.ppf(p)}


def mcnemar_cases():
    cases = [(0, 0), (0, 1), (1, 0), (0, 5), (0, 6), (6, 0), (1, 1), (3, 9), (10, 2), (25, 25), (25, 26)]
    cases += [(40, 61), (310, 402), (1500, 1400), (0, 60), (5021, 5230), (3, 900)]
    rows = []
    for b, c in cases:
        both = 100
        exact = mcnemar([[both, b], [c, both]], exact=True).pvalue
        if b + c:
            assert abs(exact - stats.binomtest(b, b + c, 0.5).pvalue) <= 1e-9 * exact, (b, c)
        m = min(b, c)
        tail = 2 * stats.binom.cdf(m, b + c, 0.5) - stats.binom.pmf(m, b + c, 0.5)
        rows.append({"lost": b, "gained": c, "exact": exact, "mid_p": 1.0 if b == c else tail})
    return rows


def wilson():
    rows = []
    for correct, n in [(0, 10), (10, 10), (1, 10), (5, 10), (61, 100), (1267, 2000), (9000, 10042), (1, 1)]:
        for confidence in [0.9, 0.95, 0.99]:
            low, high = proportion_confint(correct, n, alpha=1 - confidence, method="wilson")
            rows.append({"correct": correct, "n": n, "confidence": confidence, "low": low, "high": high})
    return rows


def newcombe(a, b, c, d, confidence=0.95):
    n = a + b + c + d
    p0, p1 = (a + b) / n, (a + c) / n
    l0, u0 = proportion_confint(a + b, n, alpha=1 - confidence, method="wilson")
    l1, u1 = proportion_confint(a + c, n, alpha=1 - confidence, method="wilson")
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    product = a * d - b * c
    if product > 0:
        product = max(product - n / 2, 0)
    phi = product / np.sqrt(margins) if margins else 0.0
    low = np.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u0 - p0) + (u0 - p0) ** 2)
    high = np.sqrt((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p0 - l0) + (p0 - l0) ** 2)
    return p1 - p0 - low, p1 - p0 + high


def accuracies():
    rows = []
    for a, b, c, d in [(700, 40, 20, 240), (30, 5, 5, 10), (53, 0, 0, 7), (20, 12, 1, 4), (0, 9, 14, 0), (50, 0, 0, 0)]:
        before = np.repeat([1.0, 1.0, 0.0, 0.0], [a, b, c, d])
        after = np.repeat([1.0, 0.0, 1.0, 0.0], [a, b, c, d])
        fit = sm.OLS(after - before, np.ones(len(before))).fit(cov_type="HC0")
        low, high = newcombe(a, b, c, d)
        rows.append(
            {"both_correct": a, "lost": b, "gained": c, "both_wrong": d, "value": fit.params[0], "stderr": fit.bse[0]}
            | {"newcombe": [low, high]}
        )
    return rows


def means():
    original = rng.gamma(2.0, 1.0, 57)
    reading = original + rng.normal(0.05, 0.2, 57)
    test = stats.ttest_rel(reading, original)
    value = np.mean(reading - original)
    stderr = value / test.statistic
    z = stats.norm.ppf(0.975)
    return {
        "original": original,
        "reading": reading,
        "value": value,
        "stderr": stderr,
        "interval": [value - z * stderr, value + z * stderr],
        "p": 2 * stats.norm.sf(abs(value / stderr)),
        "sem": stats.sem(original),
    }


def clustered():
    sizes = rng.integers(1, 12, 23)
    labels = np.repeat(np.arange(23), sizes)
    offset = rng.normal(0, 0.5, 23)[labels]
    original = rng.normal(1.0, 1.0, len(labels))
    reading = original + 0.1 + offset + rng.normal(0, 0.4, len(labels))
    # Labels in no order: clusters are not runs.
    shuffled = rng.permutation(len(labels))
    labels, original, reading = labels[shuffled], original[shuffled], reading[shuffled]
    difference = reading - original
    fit = sm.OLS(difference, np.ones(len(labels))).fit(cov_type="cluster", cov_kwds={"groups": labels})
    sums = np.array([difference[labels == g].sum() for g in range(23)])
    counts = np.array([(labels == g).sum() for g in range(23)], dtype=float)
    ends = {}
    for method in ["percentile", "BCa"]:
        ci = stats.bootstrap(
            (sums, counts),
            lambda s, n, axis=-1: s.sum(axis=axis) / n.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=50_000,
            method=method,
            rng=np.random.default_rng(5),
        ).confidence_interval
        ends[method] = [ci.low, ci.high]
    return {
        "labels": labels,
        "original": original,
        "reading": reading,
        "value": fit.params[0],
        "stderr": fit.bse[0],
        "bootstrap": ends,
    }


def bootstrap():
    values = rng.exponential(1.0, 40) ** 1.5
    ends = {}
    for method in ["percentile", "BCa"]:
        ci = stats.bootstrap(
            (values,), np.mean, n_resamples=50_000, method=method, rng=np.random.default_rng(6)
        ).confidence_interval
        ends[method] = [ci.low, ci.high]
    return {"values": values, "stderr": stats.sem(values)} | ends


def perplexity():
    windows, tokens = 9, [31, 31, 31, 12, 31, 40, 31, 31, 5]
    original = [rng.gamma(2.0, 1.2, t) for t in tokens]
    reading = [x + rng.normal(0.03, 0.02) + rng.normal(0, 0.1, len(x)) for x in original]
    labels = np.repeat(np.arange(windows), tokens)
    difference = np.concatenate(reading) - np.concatenate(original)
    fit = sm.OLS(difference, np.ones(len(labels))).fit(cov_type="cluster", cov_kwds={"groups": labels})
    value, stderr = fit.params[0], fit.bse[0]
    z = stats.norm.ppf(0.975)
    ratio = np.exp(np.concatenate(reading).mean()) / np.exp(np.concatenate(original).mean())
    return {
        "tokens": tokens,
        "original": [x.mean() for x in original],
        "reading": [x.mean() for x in reading],
        "value": value,
        "stderr": stderr,
        "ratio": ratio,
        "ratio_interval": [np.exp(value - z * stderr), np.exp(value + z * stderr)],
    }


def exact_power(m, rho, delta, alpha=0.05):
    """Power of the exact McNemar test over all counts of discordant items and of losses among them."""
    total = 0.0
    lost = (rho + delta) / (2 * rho)
    for k in range(m + 1):
        weight = stats.binom.pmf(k, m, rho)
        if weight < 1e-12:
            continue
        b = np.arange(k + 1)
        tail = np.minimum(1, 2 * stats.binom.cdf(np.minimum(b, k - b), k, 0.5))
        total += weight * stats.binom.pmf(b, k, lost)[tail <= alpha].sum()
    return total


def power():
    rows = []
    for m, rho in [(100, 0.1), (500, 0.05), (1267, 0.05), (1838, 0.02), (3270, 0.1), (10042, 0.02)]:
        # An effect of the size d of one sample with standard deviation sqrt(rho).
        d = NormalIndPower(ddof=0).solve_power(
            effect_size=None, nobs1=m, alpha=0.05, power=0.8, ratio=0, alternative="two-sided"
        )
        mde = d * np.sqrt(rho)
        z = stats.norm.ppf(0.975)
        connor = stats.norm.cdf((mde * np.sqrt(m) - z * np.sqrt(rho)) / np.sqrt(rho - mde**2))
        rows.append(
            {"items": m, "discordance": rho, "mde": mde, "power": connor, "exact_power": exact_power(m, rho, mde)}
        )
    return rows


def multiplicity():
    tables = [
        [0.01, 0.04, 0.03, 0.005, 0.2, 0.04, 1.0],
        [0.5],
        [1.0, 1.0, 1.0],
        [0.0, 0.05, 0.05, 1e-12, 0.9],
        list(rng.uniform(0, 1, 24) ** 3),
    ]
    return [
        {
            "p": p,
            "holm": multipletests(p, method="holm")[1],
            "benjamini_hochberg": multipletests(p, method="fdr_bh")[1],
        }
        for p in tables
    ]


def divergence():
    rows = []
    for spread, noise in [(1, 0.1), (3, 0.5), (10, 1e-3), (40, 2.0), (3, 1e-5), (0.01, 0.3), (2, 3.0), (5, 0.3)]:
        for _ in range(5):
            original = rng.normal(0, spread, 24).astype(np.float32)
            reading = (original + rng.normal(0, noise, 24)).astype(np.float32)
            p = special.log_softmax(original.astype(np.float64))
            q = special.log_softmax(reading.astype(np.float64))
            rows.append(
                {
                    "original": original.astype(np.float64),
                    "reading": reading.astype(np.float64),
                    "kl": special.rel_entr(np.exp(p), np.exp(q)).sum(),
                    "confidence": np.exp(p.max()),
                    "same_top": bool(p.argmax() == q.argmax()),
                }
            )
    kl = np.array([row["kl"] for row in rows])
    confidence = np.array([row["confidence"] for row in rows])
    same = np.array([float(row["same_top"]) for row in rows])
    windows = np.repeat(np.arange(8), 5)
    edges = [0, 0.25, 0.5, 0.75, 0.95, 1.0]
    inside = [(confidence >= a) & (confidence < b if b < 1 else confidence <= b) for a, b in zip(edges, edges[1:])]

    def robust(x):
        fit = sm.OLS(x, np.ones(len(x))).fit(cov_type="cluster", cov_kwds={"groups": windows})
        return [fit.params[0], fit.bse[0]]

    return {
        "rows": rows,
        "window": 5,
        "mean": robust(kl),
        "same_top": robust(same),
        "median": np.median(kl),
        "p90": np.percentile(kl, 90),
        "p99": np.percentile(kl, 99),
        "max": kl.max(),
        "buckets": [
            {
                "tokens": int(i.sum()),
                "mean": kl[i].mean() if i.any() else None,
                "median": np.median(kl[i]) if i.any() else None,
                "same_top": same[i].mean() if i.any() else None,
            }
            for i in inside
        ],
    }


def main():
    versions = {"numpy": np.__version__, "scipy": scipy.__version__, "statsmodels": statsmodels.__version__}
    parts = [normal, wilson, accuracies, means, clustered, bootstrap, perplexity, power, multiplicity, divergence]
    golden = {"made_by": "scripts/oracle/paired_golden.py", "versions": versions, "mcnemar": mcnemar_cases()}
    golden |= {part.__name__: part() for part in parts}
    # A line per part: whole inputs would be thousands of lines otherwise.
    lines = (f"{json.dumps(key)}: {json.dumps(plain(value))}" for key, value in golden.items())
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
