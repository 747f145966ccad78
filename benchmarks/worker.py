"""Call one function in a process of its own and print its result and peak memory as JSON.

Started by :func:`benchmarks.common.in_subprocess`.
"""

import importlib
import json
import sys

from benchmarks.common import peak_bytes, plain


def main(target, arguments):
    module, function = target.split(":")
    called = getattr(importlib.import_module(module), function)
    base = peak_bytes()
    result = called(**json.loads(arguments))
    print(json.dumps(plain({"result": result, "base_bytes": base, "peak_bytes": peak_bytes()})))


if __name__ == "__main__":
    main(*sys.argv[1:])
