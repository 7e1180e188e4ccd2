"""A folder into a session, work on it there, and the outcome back."""

import tempfile
from pathlib import Path

import moorage

COUNT = """
import json, pathlib
words = {p.name: len(p.read_text().split()) for p in sorted(pathlib.Path("texts").glob("*.txt"))}
pathlib.Path("out").mkdir(exist_ok=True)
pathlib.Path("out/words.json").write_text(json.dumps(words))
words
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        texts = here / "texts"
        texts.mkdir()
        (texts / "one.txt").write_text("to be or not to be")
        (texts / "two.txt").write_text("that is the question")
        with moorage.Client() as client, client.sessions.create(image="python", cpu=1, mem="256m") as session:
            session.files.upload(texts, "texts")
            print(session.run_code(COUNT, check=True).text)
            session.files.download("out", here / "out")
        print((here / "out" / "words.json").read_text())


if __name__ == "__main__":
    main()
