"""Start long work, go away, come back in another process, and read everything it has written meanwhile.

python examples/long_run.py              starts it and prints how to come back
python examples/long_run.py SESSION RUN  comes back
"""

import sys

import moorage

WORK = "for i in 1 2 3 4 5 6 7 8 9 10; do echo step $i; sleep 1; done"


def main(arguments: list[str]) -> None:
    with moorage.Client() as client:
        if not arguments:
            session = client.sessions.create(image="python", cpu=1, mem="256m", timeout=600)
            run = session.commands.start(WORK)
            print(f"It runs. To see it: python {sys.argv[0]} {session.name} {run.run_id}")
            return
        name, run_id = arguments
        with client.sessions.get(name) as session:  # destroyed at the end
            for record in session.executions.get(run_id).output():
                print(record.seq, record.kind, record.text.rstrip())


if __name__ == "__main__":
    main(sys.argv[1:])
