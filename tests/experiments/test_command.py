"""What all commands share: exit codes, one-line errors, flags of their own."""

import pytest
from absl import flags

from experiments import command
from nanoserve.specs.errors import ConfigError


def define(own: flags.FlagValues) -> None:
    flags.DEFINE_integer("count", 1, "how many", lower_bound=1, flag_values=own)


def run(*arguments: str, body=lambda asked: 0) -> int:
    return command.run(["it.py", *arguments], "What it does.", define, body)


def test_the_bodys_code_is_the_commands():
    assert run("--count=3", body=lambda asked: asked.count) == 3


def test_help_prints_the_manual_and_the_flags_and_does_nothing_else(capsys):
    assert run("--help", body=lambda asked: pytest.fail("ran")) == 0
    out = capsys.readouterr().out
    assert "What it does." in out and "--count" in out


@pytest.mark.parametrize("argument", ["--cuont=2", "--count=none", "--count=0", "stray"])
def test_a_wrong_flag_is_one_line_and_exit_code_2(argument, capsys):
    assert run(argument) == command.EXIT_USER
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "--help" in error


def test_flags_of_one_call_are_not_those_of_the_next():
    counts = []
    for arguments in (["--count=5"], []):
        run(*arguments, body=lambda asked: counts.append(asked.count) or 0)
    assert counts == [5, 1]


def test_an_error_of_the_body_that_the_user_can_mend_is_exit_code_2(capsys):
    def body(_):
        raise ConfigError("no such chip")

    assert run(body=body) == command.EXIT_USER
    assert capsys.readouterr().err == "error: no such chip\n"


def test_an_interrupt_is_no_traceback(capsys):
    def body(_):
        raise KeyboardInterrupt

    assert run(body=body) == command.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"--parts: there is no part 'dcode'.*decode"):
        command.known("--parts", "part", ["prefill", "dcode"], ["prefill", "decode"])


def test_a_file_that_cannot_be_written_names_its_flag(tmp_path):
    with pytest.raises(ConfigError, match="--out="):
        command.write_json("--out", tmp_path / "none" / "figures.json", {})
