"""Time to the first line that a program prints, and time, CPU time and peak memory of all of it.

python bench/first_result.py PROGRAM [ARGUMENT...]

A process of its own, and a small one, for the reason given in launch.py. The program's standard
output is read here and its last line handed on; its standard error goes where ours goes.
"""

import json
import os
import sys
import time

reading, writing = os.pipe()
start = time.perf_counter()
child = os.posix_spawn(
    sys.argv[1],
    sys.argv[1:],
    os.environ,
    file_actions=[
        (os.POSIX_SPAWN_DUP2, writing, 1),
        (os.POSIX_SPAWN_CLOSE, reading),
    ],
)
os.close(writing)
said, first = b"", None
while piece := os.read(reading, 1 << 16):
    said += piece
    if first is None and b"\n" in said:
        first = time.perf_counter() - start
_, status, usage = os.wait4(child, 0)
wall = time.perf_counter() - start
kib = usage.ru_maxrss if sys.platform != "darwin" else usage.ru_maxrss / 1024
found = {
    "code": os.waitstatus_to_exitcode(status),
    "first_ms": None if first is None else 1e3 * first,
    "wall_ms": 1e3 * wall,
    "cpu_ms": 1e3 * (usage.ru_utime + usage.ru_stime),
    "peak_mib": kib / 1024,
    "lines": said.count(b"\n"),
    "last": said.decode(errors="replace").strip().rpartition("\n")[2],
}
print(json.dumps(found))
