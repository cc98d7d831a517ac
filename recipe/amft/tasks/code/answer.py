"""The program in a model's answer, and the question as a program: text in, text out; nothing is run here."""

import ast
import re

MAX_ANSWER_CHARACTERS = 200_000
MAX_PROGRAM_CHARACTERS = 50_000
FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
STATEMENT = re.compile(r"^(?:import|from|def|async|class|@)\b", re.MULTILINE)


def program_of(answer: str, prompt: str, entry_point: str) -> str | None:
    """The program that `answer` means, after the question's own imports and helpers; None where there is none.

    The last fenced block that defines the function counts; without one the last fenced block, or the whole answer where
    nothing is fenced. What does not define the function continues the prompt, as base models write, up to the first
    line that is not indented.
    """
    blocks = FENCED.findall(answer)
    defining = [block for block in blocks if defines(block, entry_point)]
    text = defining[-1] if defining else blocks[-1] if blocks else answer
    if defines(text, entry_point):
        start = 0 if blocks else min(match.start() for match in STATEMENT.finditer(text))
        program = text[start:]
        has_own_head = "from __future__" in program  # which must come first
        return program if has_own_head else f"{head_of(prompt, entry_point)}\n{program}"
    body = indented_part(text)
    return f"{prompt.rstrip()}\n{body}\n" if body else None


def defines(text: str, name: str) -> bool:
    """Whether a function or a variable of this name is made at the outermost level."""
    return re.search(rf"^(?:(?:async[ \t]+)?def[ \t]+{name}[ \t]*\(|{name}[ \t]*=)", text, re.MULTILINE) is not None


def head_of(prompt: str, entry_point: str) -> str:
    """What stands before the function in the question: imports and helpers."""
    match = re.search(rf"^def[ \t]+{entry_point}[ \t]*\(", prompt, re.MULTILINE)
    return prompt[: match.start()] if match else prompt


def stub_of(prompt: str) -> str:
    """The question as a program whose function does nothing; its imports and helpers work."""
    text = prompt.rstrip()
    try:
        ast.parse(text)  # a docstring is body enough
    except SyntaxError:
        last = text.splitlines()[-1]
        indent = last[: len(last) - len(last.lstrip())]
        text += f"\n{indent}{'    ' if last.endswith(':') else ''}pass"
    return f"{text}\n"


def indented_part(text: str) -> str:
    """The lines up to the first that is not indented; empty where the first one is not."""
    lines: list[str] = []
    for line in text.strip("\n").splitlines():
        if line.strip() and not line[0].isspace():
            break
        lines.append(line)
    body = "\n".join(lines).rstrip()
    return body if body.strip() else ""
