"""Generated pictures in processes of their own."""

from __future__ import annotations

import subprocess
import sys


def test_the_seed_decides_in_another_process_too():
    program = (
        "import hashlib, sys; from research import synth;"
        "names = synth.classes('cells', 'dev');"
        "scene = synth.generate('cells', names, seed=synth.seed_of('dev', 9), size=64);"
        "print(hashlib.sha256(scene.image.tobytes() + scene.masks[names[0]].tobytes()).hexdigest());"
        "print('torch' in sys.modules)"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0][1] == "False", "the generators must not need torch"
