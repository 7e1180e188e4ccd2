"""Does what a test asks for: counts, prints, streams, reads and writes files, fails, dies, is slow."""

import asyncio
import os

import moorage_session


class App:
    async def setup(self):
        self.count, self.running, self.most = 0, 0, 0

    async def run(self, input):
        self.count += 1
        return {"count": self.count, "pid": os.getpid(), "input": input}

    async def serial(self, input):
        """How many were in here at once at most."""
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.02)
        self.running -= 1
        self.count += 1
        return {"at": input["at"], "count": self.count, "most": self.most}

    async def stream(self, input):
        for number in range(input["to"]):
            print("step", number)
            yield {"number": number}
        yield {"number": input["to"], "done": True}

    async def slow(self, input):
        print("begun", flush=True)
        await asyncio.sleep(input["seconds"])
        return {"slept": input["seconds"]}

    async def large(self, input):
        return {"text": "x" * input["characters"]}

    async def fail(self, input):
        raise ValueError("as asked for")

    async def die(self, input):
        os._exit(7)

    async def finish(self, input):
        moorage_session.end()
        return {"count": self.count}

    async def read(self, input):
        with open(input["file"], "rb") as file:
            return {"path": input["file"], "content": file.read().decode("latin-1")}

    async def write(self, input):
        path = "/tmp/report.txt"
        with open(path, "w") as file:
            file.write(input["text"])
        return {"report": {"path": path, "content_type": "text/plain"}}
