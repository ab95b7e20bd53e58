"""A committee machine and a parity machine learn from a teacher of their own kind, example by example: their learning curves beside theory's.

    python benchmarks/machines.py [--inputs 300] [--seeds 5] [--until 120] [--rate 1.0]

Teacher and student have two units; the teacher's are orthogonal and of norm 1, the student's start at a norm of 1/2 with a small overlap, and see each
example once: `loss = kd({"input": x}).loss`, a step of plain gradient descent for each. `error` is the generalization error, for the committee computed from
the order parameters, for the parity machine on 20,000 inputs. Theory for the committee is the flow of Saad and Solla 1995 from the same order parameters; for
the parity machine the plateau of a student that has learnt nothing. Means over seeds with Student's 95% interval.
"""

import argparse
import json

import torch

from limbeck.measure.machines import generalization_error, learning_curve, order_parameters, parity_plateau
from limbeck.measure.statistics import paired_t
from limbeck.models.machine import Machine
from limbeck.objectives.response.regression_kd import RegressionKD
from limbeck.schemes.offline import Offline
from limbeck.tasks.regression import Regression
from records import folder, kept, tell

POINTS = (1, 2, 5, 10, 20, 40, 60, 80, 100, 120, 160, 200)
OVERLAP = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--until", type=int, default=120, help="examples for each input")
    parser.add_argument("--rate", type=float, default=1.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: value for name, value in vars(arguments).items() if name != "seeds"}
    place = folder(__file__, settings)
    points = [point for point in POINTS if point <= arguments.until]
    found: dict[str, object] = {"benchmark": "machines", **vars(arguments), "points": points}
    for combine in ("committee", "parity"):
        rows = []
        for seed in range(arguments.seeds):
            rows.append(kept(place, f"{combine}-{seed}", lambda c=combine, s=seed: learnt(c, s, arguments.inputs, points, arguments.rate)))
            tell(f"{combine}, seed {seed}: {rows[-1]['error'][-1]:.5f} at {points[-1]}")
        means = [paired_t([row["error"][index] for row in rows]) for index in range(len(points))]
        found[combine] = {"error": [{"mean": one.mean, "low": one.low, "high": one.high} for one in means], "theory": rows[0]["theory"]}
        if combine == "committee":
            gaps = [paired_t([row["error"][index] - row["theory"][index] for row in rows]) for index in range(len(points))]
            found["committee_minus_theory"] = [{"mean": one.mean, "low": one.low, "high": one.high} for one in gaps]
    print(json.dumps(found))


def started(combine: str, seed: int, inputs: int) -> tuple[Machine, Machine]:
    """A student and its teacher: orthogonal units, the first of each with an overlap of OVERLAP."""
    torch.manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(inputs, 4)).Q.T * inputs**0.5
    student, teacher = (Machine((inputs,), 1, units=2, combine=combine) for _ in range(2))  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        teacher.layer1.weight.copy_(basis[None, :2])
        student.layer1.weight.copy_(basis[None, 2:] / 2)
        student.layer1.weight[0, 0] += OVERLAP * basis[0]
    return student, teacher


def learnt(combine: str, seed: int, inputs: int, points: list[int], rate: float) -> dict[str, object]:
    """One student's learning curve, and theory's from where it began."""
    student, teacher = started(combine, seed, inputs)
    kd = Offline(student, teacher, [0.5 * RegressionKD(margin=None)], Regression())
    q, r, t = order_parameters(student.layer1.weight[0], teacher.layer1.weight[0])
    step = torch.optim.SGD(student.parameters(), lr=rate)
    examples = torch.Generator().manual_seed(seed + 1000)
    error: list[float] = []
    for number in range(1, points[-1] * inputs + 1):
        step.zero_grad()
        kd({"input": torch.randn(1, inputs, generator=examples)}).loss.backward()
        step.step()
        if number % inputs == 0 and number // inputs in points:
            error.append(measured(combine, student, teacher))
    if combine == "parity":
        return {"error": error, "theory": [parity_plateau(2)] * len(points)}
    curve = {round(alpha, 1): value for alpha, value in learning_curve(q, r, t, rate=rate, until=points[-1], step=0.25)}
    return {"error": error, "theory": [curve[float(point)] for point in points]}


@torch.no_grad()
def measured(combine: str, student: Machine, teacher: Machine) -> float:
    """The generalization error."""
    if combine == "committee":
        return float(generalization_error(*order_parameters(student.layer1.weight[0], teacher.layer1.weight[0])))
    x = torch.randn(20_000, student.layer1.weight.shape[2], generator=torch.Generator().manual_seed(99))
    return float((student(x) - teacher(x)).square().mean() / 2)


if __name__ == "__main__":
    main()
