"""What a hop costs: seconds of the same small requests at several addresses, one at a time, in alternation.

`python gateway_hop.py MODEL REQUESTS URL...` prints the medians as a list. It needs nothing but httpx, so that it may
run in the network of a node.
"""

import json
import statistics
import sys
import time

import httpx

WARM_UP = 20


def medians(model: str, requests: int, urls: list[str]) -> list[float]:
    """Return the median of seconds until an answer of one token, for each address."""
    taken: list[list[float]] = [[] for _ in urls]
    asked = {"model": model, "prompt": "x", "max_tokens": 1, "temperature": 0, "ignore_eos": True}
    with httpx.Client(trust_env=False, timeout=60) as client:
        for _ in range(WARM_UP + requests):
            for seconds, url in zip(taken, urls, strict=True):
                began = time.perf_counter()
                client.post(f"{url}/v1/completions", json=asked).raise_for_status()
                seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds[WARM_UP:]) for seconds in taken]


if __name__ == "__main__":
    print(json.dumps(medians(sys.argv[1], int(sys.argv[2]), sys.argv[3:])))
