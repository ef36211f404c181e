# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""What a sweep saves by sharing work: cells in one sweep against each of them in a program and a store of its own.

    compare_sharing.py EXPERIMENT --recipes R,R… --calibrations C,C… [--original] [--binary target/release/quantscope]
                       [-- SWEEP FLAGS]

One run on one machine: first the sweep of all named recipes × calibration sets, of which the experiment must draw each
once, then the same cells one by one, each in a new store; the original in neither. With --original it is also counted once
in the sweep and beside every lone cell, which then has all that its report divides by. Behind a prefix it is dropped by
its name, behind the `--`: -R original+NAME. Seconds are those of the records (making cells, evaluating, the statistics
among it), so that what every start of the program costs (reading texts, drawing figures) speaks for neither side; the wall
time of the commands stands beside them. Values are compared: sharing must not move them.

    scripts/compare_sharing.py experiments/calibration-robustness.toml --recipes static-max,smoothquant \\
        --calibrations wiki,random-tokens -- -m 'smollm2*' --models MODELS --data DATA
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def sweep(binary, experiment, store, flags):
    """Wall seconds of one sweep into `store`."""
    begun = time.monotonic()
    command = [binary, "sweep", experiment, "--results", str(store), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"compare_sharing: {' '.join(command)} exited with {done.returncode}:\n{done.stderr}")
    return time.monotonic() - begun


def cells(store):
    """Seconds and values by cell."""
    found = {}
    for path in sorted(Path(store).glob("cells/*/cell.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        seconds, values, counted = cell["execution"]["seconds"], {}, set()
        for file in sorted(path.parent.glob("measurements/*.json")):
            record = json.loads(file.read_text(encoding="utf-8"))
            values[record["result"]["metric"]] = record["result"]["value"]
            # The values of one evaluation carry the same execution.
            if record["execution"]["started"] not in counted:
                counted.add(record["execution"]["started"])
                seconds += record["execution"]["seconds"]
        found[cell["result"]["id"]] = (seconds, values)
    return found


def main():
    own = sys.argv[1:]
    at = own.index("--") if "--" in own else len(own)
    own, flags = own[:at], own[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("--recipes", required=True)
    parser.add_argument("--calibrations", required=True)
    parser.add_argument("--original", action="store_true")
    parser.add_argument("--binary", default="target/release/quantscope")
    args = parser.parse_args(own)
    recipes, sets = args.recipes.split(","), args.calibrations.split(",")
    with_it = ["-r", "original"] if args.original else []
    flags += [] if args.original else ["-R", "original"]
    keep = [flag for recipe in recipes for flag in ("-r", recipe)] + [flag for name in sets for flag in ("-c", name)]
    print(f"load average before: {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as work:
        wall = sweep(args.binary, args.experiment, Path(work, "shared"), [*with_it, *keep, *flags])
        together = cells(Path(work, "shared"))
        manifest = json.loads(Path(work, "shared", "manifest.json").read_text(encoding="utf-8"))
        original = {cell["id"] for cell in manifest["cells"] if cell["recipe"] == "original"}
        alone, single, beside, wall_alone = {}, 0.0, 0.0, 0.0
        for cell in manifest["cells"]:
            if cell["id"] not in together or cell["id"] in alone or cell["id"] in original:
                continue
            only = ["-r", cell["recipe"]] + (["-c", cell["calibration"]] if cell["calibration"] else [])
            store = Path(work, str(len(alone)))
            wall_alone += sweep(args.binary, args.experiment, store, [*with_it, *only, *flags])
            found = cells(store)
            if set(found) - original != {cell["id"]}:
                sys.exit(f"compare_sharing: {' '.join(only)} is {len(found)} cells: name sets that are drawn with one seed")
            beside += sum(found[id][0] for id in found if id in original)
            single += found[cell["id"]][0]
            alone |= found
    off = [id for id, (_, values) in together.items() if alone[id][1] != values]
    shared = sum(seconds for id, (seconds, _) in together.items() if id not in original)
    first = sum(seconds for id, (seconds, _) in together.items() if id in original)
    print(f"{len(together)} cells; values that differ: {len(off)}")
    print(f"together {shared:.0f} s, one by one {single:.0f} s: {shared / single:.2f}")
    if args.original:
        print(f"with the original once, {shared + first:.0f} s, and beside every cell, {single + beside:.0f} s: "
              f"{(shared + first) / (single + beside):.2f}")
    print(f"wall {wall:.0f} s and {wall_alone:.0f} s: {wall / wall_alone:.2f}")
    sys.exit(1 if off else 0)


if __name__ == "__main__":
    main()
