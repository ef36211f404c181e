# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.4.6", "scipy==1.17.1"]
# ///
"""Golden numbers of variance components and of quantiles of chi-squared and F, by numpy and scipy.

    variance_golden.py > harness/tests/fixtures/variance.json

No library here has the Williams-Tukey interval of the variance between groups: it is written out from its definition, on
scipy's quantiles. The mean squares of the balanced case are also those of scipy.stats.f_oneway, which is asserted.
"""

import json

import numpy as np
import scipy
from scipy import stats

rng = np.random.default_rng(20405)


def components(groups, confidence=0.95):
    k, sizes = len(groups), np.array([len(g) for g in groups], float)
    n = sizes.sum()
    means = np.array([np.mean(g) for g in groups])
    grand = np.concatenate(groups).mean()
    ss_w = sum(((np.array(g) - np.mean(g)) ** 2).sum() for g in groups)
    ss_b = (sizes * (means - grand) ** 2).sum()
    df_b, df_w = k - 1, n - k
    n0 = (n - (sizes**2).sum() / n) / df_b
    a = (1 - confidence) / 2
    ends = [
        max(0.0, (ss_b - df_b * (ss_w / df_w) * stats.f.ppf(p, df_b, df_w)) / (n0 * stats.chi2.ppf(p, df_b)))
        for p in (1 - a, a)
    ]
    assert np.isclose(stats.f_oneway(*groups).statistic, (ss_b / df_b) / (ss_w / df_w))
    return {
        "groups": [list(map(float, g)) for g in groups],
        "per_group": n0,
        "within": [ss_w / df_w, ss_w / stats.chi2.ppf(1 - a, df_w), ss_w / stats.chi2.ppf(a, df_w)],
        "between": [((ss_b / df_b) - ss_w / df_w) / n0, *ends],
    }


def draw(sizes, between, within):
    return [rng.normal(rng.normal(0, between), within, size) for size in sizes]


print(
    json.dumps(
        {
            "versions": {"numpy": np.__version__, "scipy": scipy.__version__},
            "chi_squared": [
                [p, n, stats.chi2.ppf(p, n)] for p in (0.001, 0.025, 0.5, 0.975, 0.999) for n in (1, 2, 5, 30, 400)
            ],
            "f": [
                [p, a, b, stats.f.ppf(p, a, b)]
                for p in (0.001, 0.025, 0.5, 0.975, 0.999)
                for a, b in ((1, 1), (2, 3), (7, 16), (40, 9), (100, 300))
            ],
            "components": [
                components(draw([3] * 8, 1.0, 0.3)),
                components(draw([3, 3, 3, 1, 1, 1, 1, 1], 0.2, 0.1)),
                components(draw([2, 5, 4], 0.0, 1.0)),
            ],
        },
        indent=1,
    )
)
