"""Libraries that watch a rate, on the streams of benchmarks/monitoring.py, in an environment of their own.

    python3.11 -m venv .rivals
    .rivals/bin/pip install mapie==1.6.0 ville==0.1.0

`benchmarks/monitoring.py` starts this file with `.rivals/bin/python` (or --rivals PYTHON). It needs numpy and one of the
libraries, nothing of ours. Called as `python rivals.py MISSES.npy PROMISE FALSE_ALARM`, with an array of 0 and 1 (lives,
molecules), it prints JSON: for each method the molecules before its first alarm in each life, null where there is none.

MAPIE looks at a whole life in one call. Its bounds up to a molecule do not depend on later ones, so this is the same as a
call after each molecule, which would take a thousand times as long.
"""
import importlib.metadata
import json
import sys

import numpy as np


def first(alarms: np.ndarray) -> int | None:
    "Molecules before the first alarm of a life."
    return int(alarms.argmax()) + 1 if alarms.any() else None


def mapie_looks(misses: np.ndarray, promise: float, false_alarm: float, reference: int | None) -> list[int | None]:
    "MAPIE's risk monitoring, against the promise itself or against what it concludes from `reference` calibration molecules."
    from mapie.exchangeability_testing import RiskMonitoring
    from mapie.risk_control.risks import BinaryRisk
    def occurrence(y, p): return y != p
    def condition(y, p): return np.ones(len(y), bool)
    looks = []
    for life in misses.astype(int):
        risk = BinaryRisk(occurrence, condition, higher_is_better=False)
        threshold = promise if reference is None else None
        monitor = RiskMonitoring(risk=risk, test_level=false_alarm, tolerance=0, threshold=threshold, warn=False)
        if reference is not None:
            held = np.arange(reference) >= round(promise * reference)
            monitor.compute_threshold(held.astype(int), np.ones(reference, int))
        monitor.update(life, np.zeros(len(life), int))
        looks.append(first(monitor.online_risk_lower_bound_sequence_history > monitor.threshold))
    return looks


def ville_looks(misses: np.ndarray, promise: float, false_alarm: float) -> list[int | None]:
    "A betting test with adaptive stakes and a single start (Waudby-Smith and Ramdas 2024)."
    from ville.sequential import BettingTest
    tests = (BettingTest(promise, alternative='greater', alpha=false_alarm).fit(life) for life in misses)
    return [first(test.log_e_values_ >= -np.log(false_alarm)) for test in tests]


def methods() -> dict[str, tuple]:
    "What can be imported here: name of the method → library, function, and lives that it can judge in reasonable time."
    found = {}
    for library, name, looks, lives in (
            ('mapie', 'risk monitoring, promise given', lambda *a: mapie_looks(*a, None), 150),
            ('mapie', 'risk monitoring, 113 molecules', lambda *a: mapie_looks(*a, 113), 150),
            ('ville', 'betting test', ville_looks, 2000)):
        try:
            version = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[f'{library} {version}: {name}'] = looks, lives
    return found


if __name__ == '__main__':
    available = methods()
    if len(sys.argv) == 1:
        print(json.dumps(list(available)))
    else:
        streams = np.load(sys.argv[1])
        print(json.dumps({name: looks(streams[:lives], float(sys.argv[2]), float(sys.argv[3]))
                          for name, (looks, lives) in available.items()}))
