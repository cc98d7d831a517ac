"""The process of the program under test: `python -m recipe.amft.tasks.code.solution`, one JSON object a line.

It runs the model's code and calls its function with arguments that the judge sends. Nothing that it writes is more than
a returned value to the judge.
"""

import json
import os
import sys
import types
from typing import Any, BinaryIO

from recipe.amft.tasks.code.confine import confine
from recipe.amft.tasks.code.values import from_json, to_json

MAX_REASON_CHARACTERS = 200
MODULE = "solution"


def main() -> None:
    sys.set_int_max_str_digits(0)  # tests of HumanEval+ compare longer ones; the time limit bounds the work
    requests, replies = private_streams()
    send(replies, {"value": None})
    first = json.loads(requests.readline())
    try:
        confine(first["memory_bytes"], first["cpu_seconds"])
    except OSError as error:
        send(replies, {"unavailable": str(error)})
        return
    send(replies, {"value": None})  # confined: from here on any reply may be the code's own
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    send(replies, attempt(lambda: exec(compile(first["code"], "solution.py", "exec"), module.__dict__)))
    for line in requests:
        request = json.loads(line)
        send(replies, attempt(lambda request=request: call(module, first["entry_point"], request)))


def call(module: types.ModuleType, entry_point: str, request: dict[str, Any]) -> Any:
    function = getattr(module, entry_point)
    return to_json(function(*from_json(request["arguments"]), **from_json(request["keywords"])))


def attempt(work: Any) -> dict[str, Any]:
    """{"value": ...} or {"raised": [name, text]}; leaving by sys.exit is an exception like another."""
    try:
        return {"value": work()}
    except BaseException as error:
        return {"raised": [type(error).__name__, str(error)[:MAX_REASON_CHARACTERS]]}


def private_streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output under other numbers; in their place the code has an empty file and no end of room."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    return requests, replies


def send(stream: BinaryIO, message: dict[str, Any]) -> None:
    data = memoryview(json.dumps(message).encode() + b"\n")
    while data:
        data = data[stream.write(data) or 0 :]


if __name__ == "__main__":
    main()
