"""What a run says of itself.

telemetry.py       metrics.jsonl, TensorBoard, W&B, the progress bar
throughput.py      tokens/s, TFLOP/s and MFU; device_peaks.py: peaks of known devices
slow_steps.py      steps that take several times as long as they used to
status_file.py     RUN/status.json; status_command.py reads it
"""
