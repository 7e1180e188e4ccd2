"""Remembers a conversation."""


class App:
    async def setup(self):
        self.system, self.messages = "", []

    async def run(self, input):
        if input.get("action") == "init":
            self.system = input["system"]
            return {"response": "ready"}
        self.messages.append(input["message"])
        return {"response": f"{len(self.messages)}: {self.messages[0]}", "system": self.system}
