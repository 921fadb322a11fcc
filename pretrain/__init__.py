"""The one distributed trainer. The main job is `deepspeed pretrain/train.py`; all else is `python -m pretrain COMMAND`.

train.py          the script; command_line.py reads config.py's dataclasses, given_values.py judges what was given
trainer.py        the loop; training_step.py one step; monitor.py what watches it and tells; batch_change.py;
                  schedule.py, guards.py, validation.py, scoring.py, hooks.py
engine.py         DeepSpeed: precision.py, arithmetic.py, compilation.py, attention.py (attention_checks.py),
                  speed_choice.py, transfers.py, accelerator_presence.py
audit.py          what is said before the first step
launchers.py      who started us; stop_signal.py, interruption.py, lost_output.py: how we end
errors.py         what ends a run; library_warnings.py: what others say without need; ports.py
tasks/            what can be trained; model_building.py builds the same model on every rank
losses/           chunked cross-entropy, distillation, visual sentences
optimizers/       AdamW and Muon under every ZeRO stage; rate_rules.py: rates across sizes
checkpoints/      crash-safe, exact, across ranks and stages
rounds/           several rounds over the data
monitoring/       telemetry, throughput, status
ranks/            process groups, agreement, heartbeat, stragglers
planning/         `plan` and `bench`: memory, time, the fastest setting
quickstarts/      `quickstart`, `ocr`, `vision`
"""
