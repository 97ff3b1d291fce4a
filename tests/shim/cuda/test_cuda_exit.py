"""The end of a process with work in flight on the cuda driver, whose waiter reports its end."""

from __future__ import annotations

import shutil
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux and gcc"
)
# Work over wrapped memory, of which the submissions have the last references.
SUBMIT = """
import atexit, sys

def submit(n):
    memory = np.zeros(4096, np.uint8)
    memory = memory[-memory.ctypes.data % 16:][:64]
    commands = device.commands()
    with device.upload(memory, copy=False) as wrapped:
        commands.add(device.buffer(64), wrapped, 16)
    commands.submit(n)
    return commands

def replay():
    commands = submit(1)
    while True:
        commands.replay(1000)

device = Device("cuda")
submit(1).wait()  # with the kernel loaded, which waits for the device
"""
ENDINGS = {
    "at once": "submit(5)",
    "while a daemon replays": "threading.Thread(target=replay, daemon=True).start()\n"
    "time.sleep(0.05)",
    "with a hung device": "fake.hold = 1\nsubmit(5)",
    # Registered after the package's own, so that it runs before.
    "completed by an exit function": "fake.hold = 1\nsubmit(5)\natexit.register(fake.release)",
    "completed by a finaliser": "fake.hold = 1\nsubmit(5)\n"
    "class Last:\n"
    "    def __del__(self, release=fake.library.fake_release):\n"
    "        release()\n"
    "sys.last = Last()",
    "with commands that live on": "sys.kept = submit(5)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_ends_well(run, ending):
    assert run(SUBMIT + ENDINGS[ending] + "\nprint('end')\n") == ["end"]
