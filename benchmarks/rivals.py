"""Libraries that watch a rate, on the streams of benchmarks/monitoring.py, in an environment of their own.

    python3.11 -m venv .rivals
    .rivals/bin/pip install mapie==1.6.0 ville==0.1.0

`benchmarks/monitoring.py` starts this file with `.rivals/bin/python` (or --rivals PYTHON). It needs numpy and one of the
libraries, nothing of ours. Called as `python rivals.py MISSES.npy PROMISE FALSE_ALARM`, with an array of 0 and 1 (lives,
molecules), it prints JSON: for each method the molecules before its first alarm in each life, null where there is none. Without
arguments it prints the libraries that can be imported, and their versions.

MAPIE looks at a whole life in one call. Its bounds up to a molecule do not depend on later ones, so this is the same as a
call after each molecule, which would take a thousand times as long.
"""
import importlib.metadata
import importlib.util
import json
import sys

import numpy as np


def first(alarms: np.ndarray) -> int | None:
    "Molecules before the first alarm of a life."
    return int(alarms.argmax()) + 1 if alarms.any() else None


def mapie_looks(misses: np.ndarray, promise: float, false_alarm: float) -> dict[str, list[int | None]]:
    "MAPIE's risk monitoring, against the promise itself and against what it concludes from 113 calibration molecules."
    from mapie.exchangeability_testing import RiskMonitoring
    from mapie.risk_control.risks import BinaryRisk
    def occurrence(y, p): return y != p
    def condition(y, p): return np.ones(len(y), bool)
    risk = BinaryRisk(occurrence, condition, higher_is_better=False)
    reference = RiskMonitoring(risk=risk, test_level=false_alarm, tolerance=0, warn=False)
    missed = (np.arange(113) < round(promise * 113)).astype(int)
    reference.compute_threshold(missed, np.zeros(113, int))
    looks = {'promise given': [], 'from 113 molecules': []}
    for life in misses.astype(int):
        monitor = RiskMonitoring(risk=risk, test_level=false_alarm, threshold=promise, warn=False)
        bound = monitor.update(life, np.zeros(len(life), int)).online_risk_lower_bound_sequence_history
        looks['promise given'].append(first(bound > promise))
        looks['from 113 molecules'].append(first(bound > reference.threshold))
    return looks


def ville_looks(misses: np.ndarray, promise: float, false_alarm: float) -> dict[str, list[int | None]]:
    "A betting test with adaptive stakes and a single start (Waudby-Smith and Ramdas 2024)."
    from ville.sequential import BettingTest
    tests = (BettingTest(promise, alternative='greater', alpha=false_alarm).fit(life) for life in misses)
    return {'betting test': [first(test.log_e_values_ >= -np.log(false_alarm)) for test in tests]}


# what each library judges, and how many lives of a stream it can judge in reasonable time
LIBRARIES = {'mapie': (mapie_looks, 100), 'ville': (ville_looks, 2000)}


if __name__ == '__main__':
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)}
    if len(sys.argv) == 1:
        print(json.dumps(versions))
    else:
        streams, answer = np.load(sys.argv[1]), {}
        for library, version in versions.items():
            looks, lives = LIBRARIES[library]
            found = looks(streams[:lives], float(sys.argv[2]), float(sys.argv[3]))
            answer |= {f'{library} {version}: {name}': values for name, values in found.items()}
        print(json.dumps(answer))
