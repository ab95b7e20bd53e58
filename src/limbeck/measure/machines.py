"""What theory says of a committee machine that learns from another, example by example, in the limit of many inputs.

Saad and Solla, "On-line learning in soft committee machines", Physical Review E 52(4), 1995; "Exact solution for on-line learning in multilayer neural
networks", Physical Review Letters 74(21), 1995. Biehl and Schwarze, "Learning by on-line gradient descent", J. Phys. A 28, 1995.

The student's K fields x and the teacher's M fields y are jointly normal with covariances Q = <x x^T> `[K, K]`, R = <x y^T> `[K, M]`, T = <y y^T> `[M, M]`;
time alpha is examples per input.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["generalization_error", "learning_curve", "order_parameters", "parity_plateau"]


def order_parameters(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, R and T of weights `student [K, F]` and `teacher [M, F]`, float64."""
    ours, theirs = student.detach().double(), teacher.detach().double()
    size = ours.shape[1]
    return ours @ ours.T / size, ours @ theirs.T / size, theirs @ theirs.T / size


def _arcsines(covariance: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.asin(covariance / torch.sqrt((1 + first)[:, None] * (1 + second)[None, :])).sum()


def generalization_error(q: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Return <(sum g(x) - sum g(y))^2> / 2 over all inputs: [sum asin Q_ik / .. + sum asin T_nm / .. - 2 sum asin R_in / ..] / pi (1995 b, eq. 3).

    >>> one = torch.ones(1, 1)
    >>> float(generalization_error(one, one, one)), round(float(generalization_error(one, 0 * one, one)), 6)
    (0.0, 0.333333)
    """
    ours, theirs = q.diagonal(), t.diagonal()
    return (_arcsines(q, ours, ours) + _arcsines(t, theirs, theirs) - 2 * _arcsines(r, ours, theirs)) / math.pi


Covariance = Sequence[Sequence[float]]


def _i3(c: Covariance, i: int, j: int, k: int) -> float:
    """<g'(u_i) u_j g(u_k)> of jointly normal u with covariance c."""
    lam = (1 + c[i][i]) * (1 + c[k][k]) - c[i][k] ** 2
    return 2 / math.pi / math.sqrt(lam) * (c[j][k] * (1 + c[i][i]) - c[i][j] * c[i][k]) / (1 + c[i][i])


def _i4(c: Covariance, i: int, j: int, k: int, m: int) -> float:
    """<g'(u_i) g'(u_j) g(u_k) g(u_m)>."""
    one, two = 1 + c[i][i], 1 + c[j][j]
    lam4 = one * two - c[i][j] ** 2
    lam0 = lam4 * c[k][m] - c[j][k] * c[j][m] * one - c[i][k] * c[i][m] * two + c[i][j] * (c[i][k] * c[j][m] + c[i][m] * c[j][k])
    lam1 = lam4 * (1 + c[k][k]) - c[j][k] ** 2 * one - c[i][k] ** 2 * two + 2 * c[i][j] * c[i][k] * c[j][k]
    lam2 = lam4 * (1 + c[m][m]) - c[j][m] ** 2 * one - c[i][m] ** 2 * two + 2 * c[i][j] * c[i][m] * c[j][m]
    return 4 / math.pi**2 / math.sqrt(lam4) * math.asin(lam0 / math.sqrt(lam1 * lam2))


def _flow(q: Tensor, r: Tensor, t: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """dQ / d alpha and dR / d alpha under gradient descent with learning rate `rate` on half the squared error of each example (1995 a, eq. 4 to 7)."""
    k, m = r.shape
    c: Covariance = torch.cat([torch.cat([q, r], 1), torch.cat([r.T, t], 1)]).tolist()  # fields: the student's k, then the teacher's m
    signed = [(u, -1.0 if u < k else 1.0) for u in range(k + m)]  # the error is sum g(y) - sum g(x)
    drift = q.new_tensor([[sum(s * _i3(c, i, j, u) for u, s in signed) for j in range(k + m)] for i in range(k)])
    noise = q.new_tensor([[sum(s * z * _i4(c, i, j, u, v) for u, s in signed for v, z in signed) for j in range(k)] for i in range(k)])
    return rate * (drift[:, :k] + drift[:, :k].T) + rate**2 * noise, rate * drift[:, k:]


def learning_curve(q: Tensor, r: Tensor, t: Tensor, *, rate: float, until: float, step: float = 0.1) -> list[tuple[float, float]]:
    """Return (alpha, generalization error) from the order parameters at alpha = 0 on, by Runge and Kutta's fourth-order method."""
    found = [(0.0, float(generalization_error(q, r, t)))]
    for number in range(1, round(until / step) + 1):
        q1, r1 = _flow(q, r, t, rate)
        q2, r2 = _flow(q + step / 2 * q1, r + step / 2 * r1, t, rate)
        q3, r3 = _flow(q + step / 2 * q2, r + step / 2 * r2, t, rate)
        q4, r4 = _flow(q + step * q3, r + step * r3, t, rate)
        q, r = q + step / 6 * (q1 + 2 * q2 + 2 * q3 + q4), r + step / 6 * (r1 + 2 * r2 + 2 * r3 + r4)
        found.append((number * step, float(generalization_error(q, r, t))))
    return found


def parity_plateau(units: int) -> float:
    """Return the error of a student that has learnt nothing of a soft parity machine with orthogonal units of norm 1: <(prod g(y))^2> / 2 = (1/3)^K / 2.

    With R = 0 the student's answer is uncorrelated with its teacher's, so that the best it can say is 0; <g(y)^2> = (2 / pi) asin(1/2) = 1/3.

    >>> parity_plateau(2)
    0.05555555555555555
    """
    return (1 / 3) ** units / 2
