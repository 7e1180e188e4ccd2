"""Loads a dataset once, and analyses it as often as it is asked to."""


class App:
    async def setup(self):
        self.dataset, self.loads = None, 0

    async def run(self, input):
        if input["action"] == "load":
            self.dataset, self.loads = input["dataset"], self.loads + 1
            return {"loaded": self.dataset}
        return {"type": input["type"], "of": self.dataset, "loads": self.loads}
