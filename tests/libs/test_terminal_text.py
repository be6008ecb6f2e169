"""What strangers wrote cannot draw on the terminal, nor look like a line of ours."""

from __future__ import annotations

import json
import subprocess
import sys

from nemotron_dpo.errors import UserError
from nemotron_dpo.terminal_text import escaped, escaped_json, one_line

PROGRAM = """
import click
from nemotron_dpo import cli
from nemotron_dpo.errors import UserError

@click.command()
@click.argument("word")
def command(word):
    cli.say("program", f"warning: {word}")
    raise UserError(f"holds {word}", source=word)

cli.run(command, "program")
"""
CASES = [
    ("plain \N{LATIN SMALL LETTER E WITH ACUTE} \N{CJK UNIFIED IDEOGRAPH-4E2D}", None),
    ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
    ("a\rb\x08\x7f\x9b", r"a\rb\x08\x7f\x9b"),
    ("\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe\N{LINE SEPARATOR}", r"\u202egnp.exe\u2028"),
]


def test_controls_are_shown_by_their_number():
    for text, shown in CASES:
        assert escaped(text) == (shown or text)
    assert escaped("a\tb\n") == "a\tb\n"
    assert one_line("a\tb\nc") == r"a\tb\nc"
    assert str(UserError("b\nc: error: forged", source="a\x1b[1m")) == r"a\x1b[1m: b\nc: error: forged"
    named = {"a\x7f": "\x1b\x9b\u202e\\\n\N{LATIN SMALL LETTER E WITH ACUTE}"}
    shown = escaped_json(json.dumps(named, ensure_ascii=False, indent=2))
    assert json.loads(shown) == named
    assert shown == '{\n  "a\\u007f": "\\u001b\\u009b\\u202e\\\\\\n\N{LATIN SMALL LETTER E WITH ACUTE}"\n}'


def test_lines_of_a_program():
    word = "\x1b[2Ka\nprogram: error: forged"
    done = subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, text=True)
    assert (
        done.stderr.splitlines()[-1]
        == r"program: error: \x1b[2Ka\nprogram: error: forged: holds \x1b[2Ka\nprogram: error: forged"
    )
    assert "\x1b" not in done.stderr
    done = subprocess.run([sys.executable, "-c", PROGRAM, "a", "\x1b[2Kb\nc"], capture_output=True, text=True)
    assert done.stderr.startswith(r"program: error: Got unexpected extra argument (\x1b[2Kb\nc)")
