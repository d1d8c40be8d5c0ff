"""Three-step tables small enough to check by hand, and facts of the papers as numbers.

Nearly all numbers of the tables are sums of few powers of two, which float64 must reproduce without any rounding.
"""

from __future__ import annotations

# --- elementwise, 3 numbers

LR, WEIGHT_DECAY = 0.5, 0.5  # the decay factor is 1 - 0.5 * 0.5 = 0.75
W0 = [1.0, -2.0, 0.0]
GRADIENTS = [
    [4.0, -8.0, 0.0],
    [-8.0, 2.0, 1.0],
    [0.0, 0.0, -1.0],
]

# Signum, beta = 0.5: M = 0.5 M + 0.5 G;  W = 0.75 W - 0.5 sign(M)
SIGNUM_BETA = 0.5
SIGNUM = [
    # M                    W
    # 0.5 * (4, -8, 0)     0.75 * (1, -2, 0) - 0.5 * (1, -1, 0)
    ([2.0, -4.0, 0.0], [0.25, -1.0, 0.0]),
    # (1 - 4, -2 + 1, .5)  0.75 * (.25, -1, 0) - 0.5 * (-1, -1, 1) = (.1875 + .5, -.75 + .5, -.5)
    ([-3.0, -1.0, 0.5], [0.6875, -0.25, -0.5]),
    # (-1.5, -.5, .25-.5)  0.75 * (.6875, -.25, -.5) + 0.5 = (.515625 + .5, -.1875 + .5, -.375 + .5)
    ([-1.5, -0.5, -0.25], [1.015625, 0.3125, 0.125]),
]

# Lion, betas = (0.5, 0.75): D = 0.5 M + 0.5 G;  W = 0.75 W - 0.5 sign(D);  M = 0.75 M + 0.25 G
LION_BETAS = (0.5, 0.75)
LION = [
    # D = (2, -4, 0).   M = 0.25 * (4, -8, 0).   W = 0.75 * (1, -2, 0) - 0.5 * (1, -1, 0)
    ([1.0, -2.0, 0.0], [0.25, -1.0, 0.0]),
    # D = (.5 - 4, -1 + 1, .5) = (-3.5, 0, .5): sign(0) = 0.   M = (.75 - 2, -1.5 + .5, .25)
    # W = 0.75 * (.25, -1, 0) - 0.5 * (-1, 0, 1) = (.1875 + .5, -.75, -.5)
    ([-1.25, -1.0, 0.25], [0.6875, -0.75, -0.5]),
    # D = (-.625, -.5, .125 - .5): all negative.   M = (-.9375, -.75, .1875 - .25)
    # W = 0.75 * (.6875, -.75, -.5) + 0.5 = (.515625 + .5, -.5625 + .5, -.375 + .5)
    ([-0.9375, -0.75, -0.0625], [1.015625, -0.0625, 0.125]),
]

# --- LionMuon on a 1 x 1 matrix, period 2

# The cubic 1.5 s - 0.5 s^3 leaves s = 1 alone, so the polar factor of a 1 x 1 matrix is exactly its sign and, with
# scale "none", a spectral step is lr * sign. Rates: spectral 0.5 (decay factor 1 - 0.5 * 0.5 = 0.75), sign
# 0.25 * 0.5 = 0.125 (decay factor 1 - 0.125 * 0.5 = 0.9375). betas = (0.5, 0.75).
LION_MUON_LR, LION_MUON_RATIO, LION_MUON_BETAS = 0.5, 0.25, (0.5, 0.75)
LION_MUON_W0 = 1.0
LION_MUON_GRADIENTS = [4.0, -8.0, 1.0]
LION_MUON = [
    # t = 0 spectral: D = 2.               W = 0.75 * 1 - 0.5.               M = 0.25 * 4
    (1.0, 0.25),
    # t = 1 sign:     D = .5 - 4 = -3.5.   W = 0.9375 * .25 + .125.          M = .75 - 2
    (-1.25, 0.359375),
    # t = 2 spectral: D = -.625 + .5.      W = 0.75 * .359375 + .5.          M = -.9375 + .25
    (-0.6875, 0.76953125),
]

# --- AdamW, one number

# betas = (0.5, 0.75), lr = wd = 0.5, and a large eps = 4 so that its place is visible.
ADAMW_BETAS, ADAMW_EPS = (0.5, 0.75), 4.0
ADAMW_W0 = 1.0
ADAMW_GRADIENTS = [4.0, 4.0, 0.0]
ADAMW = [
    # m = 2, m^ = 2 / .5 = 4.  v = .25 * 16 = 4, v^ = 4 / .25 = 16.  W = .75 - .5 * 4 / (4 + 4)
    (2.0, 4.0, 0.5),
    # m = 1 + 2 = 3, m^ = 3 / .75 = 4.  v = 3 + 4 = 7, v^ = 7 / .4375 = 16.  W = .75 * .5 - .25
    (3.0, 7.0, 0.125),
    # m = 1.5, m^ = 1.5 / .875 = 12 / 7.  v = 5.25, v^ = 5.25 / .578125 = 336 / 37.
    # W = .75 * .125 - .5 m^ / (sqrt(v^) + 4)
    (1.5, 5.25, 0.09375 - 0.5 * (12 / 7) / ((336 / 37) ** 0.5 + 4)),
]

# --- Newton-Schulz

# One step at s = 1 is the sum of the coefficients: 3.4445 - 4.7750 + 2.0315.
KELLER_AT_ONE = 0.7010
# Five steps: normalised singular values in the interval end in the band (to three digits; the exact lower end is
# 0.68183, the upper ones 1.20237 and 1.13436); far below the interval the map is s * 3.4445^5.
KELLER_BANDS = [
    ((0.003, 1.0), (0.682, 1.203)),
    ((0.01, 1.0), (0.682, 1.134)),
]
KELLER_SLOPE_AT_ZERO = 485.0
# What a well-conditioned matrix may end with after five steps of the Keller quintic, with room for low precision.
BAND = (0.68, 1.21)

# Root mean square of a spectral step per unit of lr with scale "match_rms", when all singular values are 1.
MATCH_RMS = 0.2
# Spectral norm of the same step for two shapes of GPT-2: 0.2 sqrt(768), 0.2 sqrt(3072).
MATCH_RMS_NORMS = {(768, 768): 5.5, (3072, 768): 11.1}

# Scale factors, mode -> (m, n) -> value.
SCALES = {
    "match_rms": {(4, 16): 0.8, (16, 4): 0.8, (9, 9): 0.6, (1, 100): 2.0},
    "keller": {(4, 16): 1.0, (16, 4): 2.0, (9, 9): 1.0, (100, 1): 10.0},
    "spectral": {(4, 16): 0.5, (16, 4): 2.0, (9, 9): 1.0, (1, 100): 0.1},
    "none": {(4, 16): 1.0, (16, 4): 1.0, (9, 9): 1.0, (1, 100): 1.0},
}
