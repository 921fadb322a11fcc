"""Trains one configuration. The main job's own script:

deepspeed pretrain/train.py --config configs/pangu_pi/runs/quickstart.yaml --optimizer.lr 1e-3
torchrun --nproc-per-node 2 pretrain/train.py --config configs/pangu_pi/runs/quickstart.yaml
python pretrain/train.py --config configs/pangu_pi/runs/quickstart.yaml
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn


def _leave() -> NoReturn:
    """Ends this process at once: an orderly end might wait for ranks that wait for this one in a collective."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def main() -> int:
    """Exit code: 0 finished or stopped by a signal after saving, 1 failed, 2 wrong configuration."""
    # A script's own folder comes first on the path; its files must not hide packages of the same name.
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [str(Path(here).parent), *(entry for entry in sys.path if entry != here)]
    from common.caches import use_writable_caches
    from pretrain.launchers import find_launcher
    from pretrain.lost_output import survive_lost_output

    survive_lost_output()
    launcher = find_launcher(int(os.environ.get("WORLD_SIZE", "1")) > 1)  # before it has time to be gone
    use_writable_caches()
    from pretrain.accelerator_presence import tell_deepspeed
    from pretrain.library_warnings import silence_library_warnings

    tell_deepspeed()
    silence_library_warnings()
    from pretrain.command_line import changed_settings, parse, write_config
    from pretrain.errors import ConfigurationError

    first = os.environ.get("RANK", "0") == "0"
    try:
        config, text = parse()
    except ConfigurationError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once per host: a variable may be missing on one of them only
            print(f"train.py: {error}", file=sys.stderr)
        return 2
    if first:
        from pretrain.checkpoints.run_lock import RunLock

        try:
            lock = RunLock(Path(config.output))
            changed = changed_settings(Path(config.output), text)
            write_config(Path(config.output), text)
        except OSError as error:
            print(
                f"train.py: output {config.output}: {error.strerror}; it must be a folder to write to", file=sys.stderr
            )
            return 2
        except ConfigurationError as error:
            print(f"train.py: {error}", file=sys.stderr)
            return 1
        if changed and config.checkpoint.resume:
            print(
                f"train.py: {config.output} was last started with other settings; from here on:\n{changed}", flush=True
            )

    import torch.distributed as dist

    from common.errors import InputError
    from data_pipeline.worker_signals import STOP_SIGNALS
    from pretrain.trainer import Outcome, train

    try:
        outcome = train(config, launcher)
    except (InputError, OSError) as error:  # of the system's errors, those of a file that the configuration names
        print(f"train.py: {error}", file=sys.stderr, flush=True)
        _leave()
    except Exception:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        traceback.print_exc()
        _leave()
    if outcome is Outcome.STOPPED:
        for number in STOP_SIGNALS:  # it is saved; being told once more changes nothing
            signal.signal(number, signal.SIG_IGN)
    if first:
        print(f"{outcome.value}: {config.output}", flush=True)
        lock.release()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
