"""Waits until all nodes of the job have joined Ray: `wait_for_ray.py NODES SECONDS`, with the head in RAY_ADDRESS.

Says what there is and exits with 0, or says who is missing and exits with 2.
"""

from __future__ import annotations

import sys
import time

import ray


def main(nodes: int, timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
            break
        except ConnectionError as error:
            if time.monotonic() > deadline:
                print(f"taudojo: Ray's head does not answer after {timeout_s:.0f} s: {error}", file=sys.stderr)
                return 2
            time.sleep(1)
    while True:
        alive = [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]
        if len(alive) >= nodes:
            break
        if time.monotonic() > deadline:
            print(
                f"taudojo: after {timeout_s:.0f} s Ray has {len(alive)} of {nodes} nodes ({', '.join(alive)}).", file=sys.stderr
            )
            return 2
        time.sleep(1)
    resources = ray.cluster_resources()
    print(f"taudojo: Ray has {len(alive)} node(s), {resources.get('CPU', 0):.0f} CPUs, {resources.get('GPU', 0):.0f} GPUs")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
