"""Stands for a browser: what was done on its one page, in order."""


class App:
    async def setup(self):
        self.page, self.done = None, []

    async def run(self, input):
        action = input["action"]
        if action == "start":
            self.page = input["url"]
        elif self.page is None:
            raise RuntimeError("no page is open")
        self.done.append(action)
        return {"page": self.page, "done": list(self.done)}
