"""An engine that computes nothing, behind the real protocol: its speed and its faults are environment variables."""

from __future__ import annotations

import os
import time


class FakePeer:
    title = "Fake"
    formats = {"float32": "nothing at all"}

    @staticmethod
    def environment(threads):
        return {"FAKE_THREADS": str(threads)}

    def version(self):
        if os.environ.get("FAKE_MISSING"):
            raise ImportError("No module named 'fake'")
        return f"1.0 on {os.environ['FAKE_THREADS']} threads"

    def prepare(self, checkpoint, precision, folder):
        return folder / f"{checkpoint.name}-{precision}"

    def load(self, model, precision, threads):
        print("engines print what they like")
        self._model = model

    def run(self, workload):
        if workload.name == os.environ.get("FAKE_FAILS_ON"):
            raise RuntimeError(f"no {workload.name}")
        if workload.name == os.environ.get("FAKE_DIES_ON"):
            os._exit(3)
        if workload.name == os.environ.get("FAKE_HANGS_ON"):
            time.sleep(60)
        figure = "decode_tokens_per_s" if workload.kind in ("W1", "W4") else "prompt_tokens_per_s"
        return {figure: float(os.environ.get("FAKE_SPEED", "1")) * len(workload.requests)}
