"""Thousands of ranks on paper and simulated: `python benchmarks/scaling.py`; docs/scaling.md explains the numbers.

    scaling_communication.py    bytes of each ZeRO stage, counted on two ranks; where sending takes as long as computing
    scaling_simulation.py       our Order, Loader, Ledger, Checkpoints, conversion and start-up at 4,096 ranks

Times are wall-clock; beside them what the processor worked, which is the figure to trust on a shared machine.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import scaling_communication as communication
import scaling_simulation as simulation
from measure import finish
from scaling_communication import BATCH_TOKENS, CLUSTERS, LENGTH, Shape
from scaling_simulation import HASHING, Row
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
MICRO_BATCH = 8 * LENGTH
"""Tokens of the micro-batches that are drawn: 8 sequences, as in configs/pangu_pi/runs/1b_pro.yaml."""
STATE_BYTES = 12
"""Of a parameter in a checkpoint: fp32 master copy and Adam's two moments."""


def volumes(shapes: dict[str, Shape], ranks: int) -> list[dict]:
    """Bytes per rank and step of each stage."""
    print(f"Sent by a rank in one step, {ranks:,} ranks (GB), with gradients in fp32; DeepSpeed as configured here, in")
    print("brackets the ZeRO paper")
    heads = [f"{name}, {k} micro-batch{'es' * (k > 1)}" for name in shapes for k in (1, 16)]
    print(f"{'':14}" + "".join(f"{head:>28}" for head in heads))
    rows = []
    for stage in range(4):
        cells = []
        for name, shape in shapes.items():
            for accumulation in (1, 16):
                sent = communication.sent(stage, shape.parameters, ranks, accumulation)
                least = communication.paper(stage, shape.parameters, ranks)
                cells.append(f"{sent / 1e9:,.1f}" + f" ({least / 1e9:,.1f})" * (accumulation == 1))
                rows.append({"stage": stage, "model": name, "accumulation": accumulation, "bytes": sent})
        print(f"{f'ZeRO {stage}, bf16':14}" + "".join(f"{cell:>28}" for cell in cells))
    return rows


def counted() -> list[dict]:
    """What two ranks really sent, beside the formula."""
    found = communication.count()
    count = found[0]["parameters"]
    print(f"\nBytes that a rank of two sent in one step; a model of {count:,} parameters, of which stage 3")
    print("keeps nothing whole here. What goes beyond the formula are norms and flags")
    print(f"{'':34}{'counted':>12}{'formula':>12}   by operation")
    for each in found:
        stage, accumulation = each["stage"], each["accumulation"]
        each["formula"] = communication.sent(stage, each["parameters"], 2, accumulation, each["precision"], reuse=0)
        parts = ", ".join(f"{name} {size:,.0f}" for name, size in each["bytes"].items())
        head = f"ZeRO {stage}, {each['precision']}, {accumulation} micro-batch{'es' * (accumulation > 1)}"
        print(f"{head:34}{sum(each['bytes'].values()):12,.0f}{each['formula']:12,.0f}   {parts}")
    return found


def meetings(shapes: dict[str, Shape], mfu: float) -> list[dict]:
    """Tokens of a rank and step below which a cluster sends for longer than it computes."""
    print(
        f"\nTokens of a rank in one step at which sending at line rate takes as long as computing at {mfu:.0%} MFU (an"
    )
    print(f"assumption), and how many ranks share {BATCH_TOKENS:,} tokens then. 1x16: 16 micro-batches in that step")
    columns = [("ZeRO 1", 1, 1), ("ranks", 1, 1), ("ZeRO 2", 2, 1), ("ZeRO 2, 1x16", 2, 16), ("ZeRO 3", 3, 1),
               ("ZeRO 3, 1x16", 3, 16)]  # fmt: skip
    print(f"{'':38}" + "".join(f"{name:>14}" for name, _, _ in columns))
    rows = []
    for model, shape in shapes.items():
        for cluster in CLUSTERS:
            cells, row = [], {"model": model, "cluster": cluster.name}
            for name, stage, accumulation in columns:
                tokens = communication.meeting_point(stage, shape, cluster, mfu, accumulation)
                cells.append(f"{BATCH_TOKENS / tokens if name == 'ranks' else tokens:14,.0f}")
                row[name] = BATCH_TOKENS / tokens if name == "ranks" else tokens
            print(f"{f'{model}, {cluster.name}':38}" + "".join(cells))
            rows.append(row)
    return rows


def draw(shapes: dict[str, Shape], mfu: float, path: Path) -> None:
    """Time of sending as a share of computing, against tokens of a rank and step, one panel for each model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    tokens = [LENGTH * 2**power for power in range(9)]
    colours = ("#2f9e63", "#3b7dd8", "#d9782d", "#d64545")
    for number, (model, shape) in enumerate(shapes.items()):
        axis = figure.add_subplot(1, len(shapes), number + 1)
        for cluster, colour in zip(CLUSTERS, colours, strict=True):
            for stage, style in ((1, "-"), (3, ":")):
                shares = [
                    communication.meeting_point(stage, shape, cluster, mfu, max(1, each // MICRO_BATCH)) / each
                    for each in tokens
                ]
                axis.plot(tokens, shares, style, color=colour, label=f"{cluster.name}, ZeRO {stage}")
        axis.axhline(1, color="#888888", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_ylim(1e-4, 100)  # the legend lies below the lines
        axis.set_xticks(tokens, [f"{each // 1024}k" for each in tokens])
        axis.set_title(f"{model}, {mfu:.0%} MFU, micro-batches of at most {MICRO_BATCH // LENGTH} x {LENGTH:,}",
                       loc="left", fontsize=9)  # fmt: skip
        axis.set_xlabel("tokens of a rank in one step")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds of sending / seconds of computing")
    figure.axes[0].legend(frameon=False, fontsize=7, ncols=2, loc="lower left")
    figure.savefig(path, dpi=120)


def simulate(options: argparse.Namespace, shapes: dict[str, Shape]) -> dict[str, list[dict]]:
    """Every part of the simulation, as tables."""
    ranks, host = options.ranks, options.per_host
    parts = {
        "Data order": lambda: simulation.order(ranks, options.samples),
        "A round's ledger of single samples": lambda: simulation.ledger(ranks, options.samples),
        "A checkpoint of stage 3, two files of a rank": lambda: simulation.checkpoints(ranks, options.hashed_mb),
        "Conversion for another number of ranks or stage": lambda: conversions(ranks, options.large_elements),
        "Start": lambda: simulation.start_up(ranks, host, options.threads),
        "Heartbeat": lambda: simulation.heartbeat(ranks, host),
    }
    made: dict[str, list[Row]] = {}
    for title, part in tqdm(parts.items(), "simulation", unit="part"):
        made[title] = part()
    made["Extrapolated by bytes to real sizes"] = extrapolated(made, shapes, ranks, options.large_elements)
    width = max(len(row.what) for rows in made.values() for row in rows)
    for title, rows in made.items():
        print(f"\n{title}: {ranks:,} ranks\n{'':{width}}{'':>12}  {'':8}{'processor':>10}")
        for row in rows:
            worked = "" if row.processor is None else f"{row.processor:,.3g}"
            print(f"{row.what:{width}}{row.value:12,.4g}  {row.unit:8}{worked:>10}  {row.note}")
    return {title: [asdict(row) for row in rows] for title, rows in made.items()}


def conversions(ranks: int, large_elements: int) -> list[Row]:
    """From all ranks with little in each file, and from few with much."""
    small = [simulation.conversion(ranks, 64, stage) for stage in (1, 3)]
    return [*small, simulation.conversion(16, large_elements // 16, 1)]


def extrapolated(made: dict[str, list[Row]], shapes: dict[str, Shape], ranks: int, large_elements: int) -> list[Row]:
    """Hashing and converting the states of real models: not measured, computed from the rates above."""
    rate = next(row.value for rows in made.values() for row in rows if row.what == HASHING) * 1e9
    *small, large = made["Conversion for another number of ranks or stage"]
    rows = []
    for name, shape in shapes.items():
        size = STATE_BYTES * shape.parameters
        seconds = size / rate
        rows.append(
            Row(
                f"hashing {name}, {size / 1e9:,.0f} GB of states",
                seconds,
                "s",
                "one core, storage as fast; rank 0 at every save and resume while the others wait",
                seconds,
            )
        )
        per_byte = (large.processor or 0.0) / (STATE_BYTES * large_elements)
        seconds = max(row.processor or 0.0 for row in small) + size * per_byte
        rows.append(Row(f"converting {name} from {ranks:,} ranks", seconds, "s", "one core, storage as fast", seconds))
    return rows  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--per_host", type=int, default=8, help="ranks on a host")
    parser.add_argument(
        "--samples", type=int, default=4096 * 5961, help="of one pass: 50 B tokens in sequences of 2,048"
    )
    parser.add_argument("--mfu", type=float, default=0.4, help="model FLOPs utilisation that is assumed")
    parser.add_argument("--hashed_mb", type=int, default=512)
    parser.add_argument("--large_elements", type=int, default=2**24, help="parameters of the large conversion")
    parser.add_argument("--threads", type=int, nargs="+", default=[16, 32, 64], help="ranks that gloo connects")
    parser.add_argument("--output", default=str(ROOT / "docs" / "results"), help="folder for scaling.json and .png")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        communication.count_here()
        return
    shapes = communication.shapes(ROOT / "configs" / "pangu_pi" / "models")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"Measured on a machine that others use too: load {load:.1f} on {os.cpu_count()} cores at the start.\n")
    tables = {
        "volumes": volumes(shapes, options.ranks),
        "counted": counted(),
        "meetings": meetings(shapes, options.mfu),
    }
    output = Path(options.output)
    draw(shapes, options.mfu, output / "scaling.png")
    tables |= {"simulation": simulate(options, shapes)}
    (output / "scaling.json").write_text(json.dumps(tables, indent=1) + "\n")
    finish("scaling", {}, ranks=options.ranks, mfu=options.mfu, load=load)


if __name__ == "__main__":
    main()
