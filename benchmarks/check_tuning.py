"""Whether the tuner's choice is the best fixed kernel when all are measured again.

    python benchmarks/check_tuning.py --device cuda [--budget 20]

prints a Markdown table of the common shapes: the kernel that the tuner chose within its budget, and
how much longer than the best one it takes in a second run. The last line has the largest of these.
"""

from __future__ import annotations

import argparse

from oxibonsai import metal
from oxibonsai.metal import Device


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", metavar="NAME", help='such as "metal"; else the default')
    parser.add_argument("--budget", type=float, default=20.0, metavar="S", help="seconds (20)")
    args = parser.parse_args()
    with Device(args.device) as device:
        first = metal.tune(device, budget=args.budget, keep=False)
        products = [measured.variant for measured in first.measured]
        again = metal.tune(device, products, budget=float("inf"), keep=False)
        print(f"{device.name}: {len(products)} products, {len(first.left)} left by the budget\n")
        print("| product | default | chosen | us | best again | us | longer |")
        print("|---|---|---|---|---|---|---|")
        most = 0.0
        for chosen, second in zip(first.measured, again.measured, strict=True):
            v, seconds = chosen.variant, second.seconds
            best = min(seconds, key=seconds.__getitem__)
            longer = seconds[v.name] / seconds[best] - 1
            most = max(most, longer)
            print(
                f"| {v.op} {v.device_format} {v.n_rows} x {v.k} by {v.n_vectors} "
                f"| {chosen.default} | {v.name} | {1e6 * seconds[v.name]:.1f} "
                f"| {best} | {1e6 * seconds[best]:.1f} | {longer:.1%} |"
            )
        print(f"\nat most {most:.1%} longer than the best")


if __name__ == "__main__":
    main()
