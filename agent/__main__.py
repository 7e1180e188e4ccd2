"""`python -m agent`: the same as `moorage agent`."""

from agent.commands import agent

if __name__ == "__main__":
    agent(prog_name="moorage agent")
