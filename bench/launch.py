"""Wall time, CPU time and peak memory of a whole process, as one JSON object.

python bench/launch.py PROGRAM [ARGUMENT...]

A process of its own, and a small one: Linux counts the memory of the process that started another
one into the other's peak. What the program prints goes to standard error.
"""

import json
import os
import sys
import time

start = time.perf_counter()
child = os.posix_spawn(
    sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)]
)
_, status, usage = os.wait4(child, 0)
wall = time.perf_counter() - start
kib = usage.ru_maxrss if sys.platform != "darwin" else usage.ru_maxrss / 1024
found = {
    "code": os.waitstatus_to_exitcode(status),
    "wall_ms": 1e3 * wall,
    "cpu_ms": 1e3 * (usage.ru_utime + usage.ru_stime),
    "peak_mib": kib / 1024,
}
print(json.dumps(found))
