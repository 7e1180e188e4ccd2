"""Variables that change while the container runs, as those of a cluster do."""

from __future__ import annotations

import pytest

from agent.rings import RunnerError

from .conftest import Kernel

ASK = "import os; print(os.environ.get('WORLD_SIZE'))"


async def test_commands_and_the_interpreter_that_is_there_see_them(kernel: Kernel) -> None:
    await kernel.run("x = 1")
    await kernel.link.set_environ({"WORLD_SIZE": "3"})
    assert (await kernel.run("echo $WORLD_SIZE", mode="batch")).stdout == "3\n"
    assert (await kernel.run(f"{ASK}; print(x)")).stdout == "3\n1\n"


async def test_code_that_waits_for_input_is_not_disturbed(kernel: Kernel) -> None:
    run = kernel.new_run()
    await kernel.link.execute(run, mode="query", code=f"print(input()); {ASK}")
    await kernel.until(run, "input_request")
    await kernel.link.set_environ({"WORLD_SIZE": "4"})
    await kernel.link.send_input(run, b"answer\n")
    assert (await kernel.finish(run)).stdout == "answer\n4\n"


async def test_a_new_interpreter_has_them_from_the_beginning(kernel: Kernel) -> None:
    await kernel.link.set_environ({"WORLD_SIZE": "5"})
    await kernel.run("import os; os._exit(3)")
    assert (await kernel.run(ASK)).stdout == "5\n"


@pytest.mark.parametrize("values", [[], "A=1", None])
async def test_what_are_no_variables_is_refused(kernel: Kernel, values: object) -> None:
    with pytest.raises(RunnerError, match="'values' is an object"):
        await kernel.link._ask({"op": "environ", "values": values})
    await kernel.link.set_environ({"": "1", "A=B": "1", "C": "\0"})  # names and values that no process can have
    assert (await kernel.run("env", mode="batch")).done["exit_code"] == 0
